/* The two taps of the packet recorder: as received, as sent. A filter is added or removed by writing maps, never by a reload. */
#ifndef CAPTURE_H
#define CAPTURE_H

#include "capture_abi.h"

BPF_TABLE_PINNED("array", __u32, struct tg_capture_config, tg_capture_config, 1, TG_MAPS "/tg_capture_config");
BPF_TABLE_PINNED("array", __u32, struct tg_capture_mask, tg_capture_mask, TG_CAPTURE_MASKS, TG_MAPS "/tg_capture_mask");
BPF_TABLE_PINNED("hash", struct tg_capture_tuple, struct tg_capture_rule, tg_capture_rule, TG_CAPTURE_RULES,
		 TG_MAPS "/tg_capture_rule");
BPF_TABLE_PINNED("percpu_array", __u32, struct tg_capture_seen, tg_capture_seen, 1, TG_MAPS "/tg_capture_seen");
BPF_TABLE_PINNED("percpu_array", __u32, struct tg_capture_count, tg_capture_count, 1, TG_MAPS "/tg_capture_count");

/* bcc's macro for a perf ring takes no pin. */
struct tg_capture_events_table_t {
	int key;
	__u32 leaf;
	int (*perf_submit_skb)(void *, __u32, void *, __u32);
	__u32 max_entries;
};
__attribute__((section("maps/perf_output:" TG_MAPS "/tg_capture_events"))) struct tg_capture_events_table_t tg_capture_events;

/* Python computes the same of a rule's key: datapath/capture/filters.py. */
static __always_inline __u32 tg_capture_hash(const struct tg_capture_tuple *t)
{
	__u32 ports = t->sport | ((__u32)t->dport << 16);
	__u32 folded = t->src.word[0] ^ t->src.word[1] ^ t->src.word[2] ^ t->src.word[3] ^ t->dst.word[0] ^ t->dst.word[1] ^
		       t->dst.word[2] ^ t->dst.word[3] ^ ports ^ t->proto;
	return (folded * 2654435769u) >> 24; /* 2^32 over the golden ratio (Knuth): an index among 256 bits */
}

static __always_inline void tg_capture_mask_tuple(struct tg_capture_tuple *to, const struct tg_capture_tuple *from,
						  const struct tg_capture_tuple *mask, __u8 slot)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		to->src.word[i] = from->src.word[i] & mask->src.word[i];
		to->dst.word[i] = from->dst.word[i] & mask->dst.word[i];
	}
	to->sport = from->sport & mask->sport;
	to->dport = from->dport & mask->dport;
	to->proto = from->proto & mask->proto;
	to->family = from->family & mask->family;
	to->slot = slot;
	to->pad = 0;
}

/* Ask every mask, since several captures may want one packet. Tuple, key and what is found are in the map: the stack is short, and
 * with registers the verifier would follow each slot's two outcomes to the end of the program. */
static __always_inline void tg_capture_ask(const struct tg_capture_config *config, struct tg_capture_seen *seen)
{
	for (__u32 slot = 0; slot < TG_CAPTURE_MASKS; slot++) {
		__u32 at = slot;
		if (slot >= config->masks)
			return;
		struct tg_capture_mask *mask = tg_capture_mask.lookup(&at);
		if (!mask)
			return;
		tg_capture_mask_tuple(&seen->key, &seen->event.tuple, &mask->tuple, slot);
		__u32 bit = tg_capture_hash(&seen->key);
		if (!((mask->bloom[(bit >> 6) & (TG_CAPTURE_BLOOM - 1)] >> (bit & 63)) & 1))
			continue;
		struct tg_capture_rule *rule = tg_capture_rule.lookup(&seen->key);
		if (!rule)
			continue;
		seen->event.captures |= rule->captures;
		if (rule->snaplen[0] > seen->snaplen[0])
			seen->snaplen[0] = rule->snaplen[0];
		if (rule->snaplen[1] > seen->snaplen[1])
			seen->snaplen[1] = rule->snaplen[1];
	}
}

/* Send the packet's first bytes to the ring. A full ring never stops the packet. */
static __always_inline void tg_capture_emit(struct xdp_md *ctx, struct tg_capture_seen *seen, __u32 snaplen)
{
	__u32 zero = 0;
	struct tg_capture_event *event = &seen->event;
	event->length = ctx->data_end - ctx->data;
	event->kept = event->length < snaplen ? event->length : snaplen;
	event->time = bpf_ktime_get_ns();
	int refused = tg_capture_events.perf_submit_skb(ctx, event->kept, event, sizeof(*event));
	if (refused) {
		struct tg_capture_count *count = tg_capture_count.lookup(&zero);
		if (count)
			count->refused++;
	}
}

/* Whether anything is captured at all. */
static __always_inline bool tg_capture_on(void)
{
	__u32 zero = 0;
	struct tg_capture_config *config = tg_capture_config.lookup(&zero);
	return config && config->masks;
}

/* Where the caller puts the packet's tuple before tg_capture_match(). Ask tg_capture_on() first. */
static __always_inline struct tg_capture_seen *tg_capture_begin(void)
{
	__u32 zero = 0;
	return tg_capture_seen.lookup(&zero);
}

/* Whether a filter takes the packet of this tuple. */
static __always_inline bool tg_capture_match(struct tg_capture_seen *seen)
{
	__u32 zero = 0;
	seen->event.captures = 0;
	seen->snaplen[0] = 0;
	seen->snaplen[1] = 0;
	struct tg_capture_config *config = tg_capture_config.lookup(&zero);
	if (!config)
		return false;
	seen->generation = config->generation;
	seen->is_received = 0;
	tg_capture_ask(config, seen);
	return seen->event.captures != 0;
}

/* Tap "received", of a packet that a filter takes, before it is changed. */
static __always_inline void tg_capture_received(struct xdp_md *ctx, struct tg_capture_seen *seen)
{
	__u32 zero = 0;
	seen->is_received = 1;
	seen->event.id = ((__u64)bpf_get_smp_processor_id() << 48) | ((seen->event.id + 1) & 0xffffffffffffull);
	seen->event.ifindex = ctx->ingress_ifindex;
	seen->event.tap = TG_TAP_RECEIVED;
	seen->event.verdict = 0;
	seen->event.reason = 0;
	struct tg_capture_count *count = tg_capture_count.lookup(&zero);
	if (count)
		count->matched++;
	if (seen->snaplen[0])
		tg_capture_emit(ctx, seen, seen->snaplen[0]);
}

/* Say whom the packet goes to, as soon as that is known. */
static __always_inline void tg_capture_chosen(__u32 backend)
{
	struct tg_capture_seen *seen = tg_capture_begin();
	if (seen)
		seen->event.backend = backend;
}

/* Tap "sent", as the packet leaves, whatever it looks like by now; of one that does not leave, what became of it. */
static __always_inline void tg_capture_sent(struct xdp_md *ctx, __u32 verdict, __u32 reason)
{
	__u32 zero = 0;
	struct tg_capture_config *config = tg_capture_config.lookup(&zero);
	struct tg_capture_seen *seen = tg_capture_begin();
	if (!config || !seen || seen->generation != config->generation || !seen->is_received)
		return;
	__u32 snaplen = verdict == XDP_TX || verdict == XDP_REDIRECT ? seen->snaplen[1] : 0;
	seen->event.tap = snaplen ? TG_TAP_SENT : TG_TAP_NONE;
	seen->event.verdict = verdict;
	seen->event.reason = reason;
	tg_capture_emit(ctx, seen, snaplen);
	seen->is_received = 0;
}

#endif
