/* The backend's side of direct return: a balancer's outer header is taken off, the destination becomes who listens, and answers
 * leave with the virtual address. */
#ifndef LB_BACKEND_H
#define LB_BACKEND_H

#include "egress_back.h"
#include "routing.h"

#define TG_TCP_OPTIONS 10 /* options followed in search of the segment size */

#ifndef BPF_F_ADJ_ROOM_NO_CSUM_RESET
#define BPF_F_ADJ_ROOM_NO_CSUM_RESET (1ULL << 5)
#endif

/* What is read of an outer header. */
struct tg_outer {
	struct tg_addr to;
	__u32 length; /* 0: the packet is not IP in IP, or has options, extension headers or is a fragment */
	__u8 holds_v6;
	__u8 is_congested;
};

static __always_inline void tg_read_outer(struct __sk_buff *skb, struct tg_outer *outer)
{
	bool v6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	__u32 length = v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	__u8 proto;
	outer->length = 0;
	if (!v6 && skb->protocol != bpf_htons(ETH_P_IP))
		return;
	if (skb->data_end - skb->data < ETH_HLEN + length)
		bpf_skb_pull_data(skb, ETH_HLEN + length);
	void *at = (void *)(long)skb->data + ETH_HLEN, *end = (void *)(long)skb->data_end;
	if (v6) {
		struct ipv6hdr *ip = at;
		if ((void *)(ip + 1) > end)
			return;
		proto = ip->nexthdr;
		tg_copy_ipv6(&outer->to, &ip->daddr);
		outer->is_congested = (((__u8 *)ip)[1] & 0x30) == 0x30;
	} else {
		struct iphdr *ip = at;
		if ((void *)(ip + 1) > end || ip->ihl != 5 || (ip->frag_off & (TG_IP_MF | TG_IP_OFFSET)))
			return;
		proto = ip->protocol;
		tg_map_ipv4(&outer->to, ip->daddr);
		outer->is_congested = (ip->tos & 3) == 3;
	}
	if (proto != IPPROTO_IPIP && proto != IPPROTO_IPV6)
		return;
	outer->holds_v6 = proto == IPPROTO_IPV6;
	outer->length = length;
}

/* The key under which answers of a connection through `row` are known. */
static __always_inline void tg_answer_key(struct tg_flow_key *key, const struct tg_dsr *row, const struct tg_addr *client,
					  __be16 client_port, __u8 proto)
{
	key->src = row->target;
	key->dst = *client;
	key->sport = row->target_port;
	key->dport = client_port;
	key->proto = proto;
	key->dir = TG_DIR_FORWARD;
	key->pad = 0;
}

/* The row of an ICMP error: of the backends that its frontend has at this address, the one that knows the connection. */
static __always_inline struct tg_dsr *tg_find_quoted(struct tg_dsr_key *key, const struct tg_quote *quote)
{
	struct tg_dsr *row = 0;
	struct tg_flow_key answer;
	for (int i = 1; i <= TG_DSR_QUOTED; i++) {
		key->quoted = i;
		struct tg_dsr *next = tg_dsr.lookup(key);
		if (!next)
			break;
		row = next;
		tg_answer_key(&answer, row, &quote->back_key.src, quote->back_key.sport, quote->back_key.proto);
		struct tg_flow *flow = tg_flow.lookup(&answer);
		if (flow && flow->kind == TG_FLOW_DSR)
			break;
	}
	return row;
}

/* The row of a packet within an outer header, which is then parsed into `p` (and `quote`, if it is an ICMP error); 0: none of
 * our backends is meant. */
static __always_inline struct tg_dsr *tg_find_backend(struct __sk_buff *skb, struct tg_packet *p, const struct tg_outer *outer,
						      struct tg_quote *quote)
{
	__u32 offset = ETH_HLEN + outer->length;
	int parsed = outer->holds_v6 ? tg_parse_at(skb, p, offset, true) : tg_parse_at(skb, p, offset, false);
	if (parsed != TG_PARSED)
		return 0;
	struct tg_dsr_key key = { .outer = outer->to, .vip = p->key.dst, .port = p->key.dport, .proto = p->key.proto };
	if (!p->is_icmp_error)
		return p->has_ports ? tg_dsr.lookup(&key) : 0;
	if (tg_read_quote(skb, p, quote) || !tg_addr_equal(&quote->back_key.dst, &p->key.dst))
		return 0;
	key.port = quote->back_key.dport;
	key.proto = quote->back_key.proto;
	return tg_find_quoted(&key, quote);
}

/* Remember whom the client asked. Every packet does, so that a backend that gets the middle of a connection answers as well.
 * Returns -1 if the client has such a connection through another frontend: one of the two must not be. */
static __always_inline int tg_remember_vip(const struct tg_packet *p, const struct tg_dsr *row)
{
	struct tg_flow_key key;
	__u64 now = tg_now();
	tg_answer_key(&key, row, &p->key.src, p->key.sport, p->key.proto);
	struct tg_flow *known = tg_flow.lookup(&key);
	if (known && known->kind == TG_FLOW_DSR) {
		bool is_same = tg_addr_equal(&known->addr, &p->key.dst) & (known->port == row->vip_port);
		if (!is_same && p->key.proto == IPPROTO_TCP && !tg_is_idle(known, now))
			return -1;
		if (is_same && !tg_is_tcp_open(p)) {
			if (now - known->touched > TG_TOUCH_NS)
				known->created = known->touched = now; /* the pod may be younger than the connection */
			if (tg_is_tcp_close(p))
				tg_set_state(known, IPPROTO_TCP, TG_STATE_CLOSING);
			return 0;
		}
	}
	struct tg_flow flow = { .addr = p->key.dst, .number = row->mtu, .port = row->vip_port, .kind = TG_FLOW_DSR };
	flow.created = flow.touched = now;
	tg_set_state(&flow, p->key.proto, TG_STATE_ANSWERED);
	tg_flow.update(&key, &flow);
	return 0;
}

/* Take the outer header off. `p` then describes the packet as it stands. */
static __always_inline int tg_decapsulate(struct __sk_buff *skb, struct tg_packet *p, const struct tg_outer *outer)
{
	bool was_v6 = outer->length == sizeof(struct ipv6hdr), v6 = !p->is_ipv4;
	__be16 proto = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	if (was_v6 != v6) {
		/* Makes the outer header one of the other family, in length: adjust_room refuses to leave less than the header
		 * that belongs to skb->protocol, and before kernel 6.3 cannot be told another one. */
		if (bpf_skb_change_proto(skb, proto, 0) || bpf_skb_store_bytes(skb, offsetof(struct ethhdr, h_proto), &proto, 2, 0))
			return -1;
	}
	int length = v6 ? -(int)sizeof(struct ipv6hdr) : -(int)sizeof(struct iphdr);
	/* The segment size was the inner packet's all the time, and an IP header has no checksum that a device would count. */
	if (bpf_skb_adjust_room(skb, length, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		return -1;
	p->l4 -= outer->length;
	return 0;
}

/* From a balancer to who listens. */
static __always_inline int tg_to_backend(struct __sk_buff *skb, struct tg_packet *p, const struct tg_outer *outer,
					 const struct tg_dsr *row, struct tg_quote *quote)
{
	struct tg_addr target = row->target;
	__be16 port = row->target_port;
	if (!p->is_icmp_error && tg_remember_vip(p, row))
		return TG_DROP(DSR_TAKEN);
	if (tg_decapsulate(skb, p, outer))
		return TG_DROP(REWRITE);
	if (outer->is_congested && !bpf_skb_ecn_set_ce(skb))
		return TG_DROP(ECN);
	if (p->is_icmp_error) {
		quote->ip -= outer->length;
		quote->l4 -= outer->length;
		if (tg_rewrite_quote(skb, p, quote, true, &target, port))
			return TG_DROP(REWRITE);
		port = 0;
	}
	if (tg_rewrite(skb, p, false, &target, port, 0))
		return TG_DROP(REWRITE);
	struct tg_local *pod = tg_local.lookup(&target);
	return pod ? tg_to_pod(pod, TG_FORWARD_DSR) : TG_PASS(DSR);
}

/* Lower the segment size that an answer to a SYN offers, so that the client's segments have room for the outer header. */
static __always_inline int tg_clamp_segment(struct __sk_buff *skb, const struct tg_packet *p, __u32 mtu)
{
	__u32 limit = mtu - (p->is_ipv4 ? 40 : 60), at = p->l4 + sizeof(struct tcphdr);
	struct {
		__u8 kind;
		__u8 length;
		__be16 value;
	} option;
	__u8 offset;
	if (bpf_skb_load_bytes(skb, p->l4 + 12, &offset, 1))
		return -1;
	__u32 end = p->l4 + (offset >> 4) * 4;
	for (int i = 0; i < TG_TCP_OPTIONS; i++) {
		if (at + sizeof(option) > end || bpf_skb_load_bytes(skb, at, &option, sizeof(option)) || option.kind == 0)
			return 0;
		if (option.kind == 2)
			break;
		if (option.kind != 1 && option.length < 2)
			return 0;
		at += option.kind == 1 ? 1 : option.length;
	}
	__be16 from = option.value, to = bpf_htons((__u16)limit);
	if (option.kind != 2 || option.length != 4 || bpf_ntohs(from) <= limit)
		return 0;
	if (bpf_skb_store_bytes(skb, at + 2, &to, sizeof(to), 0))
		return -1;
	/* The checksum adds up pairs of bytes, and options may begin in the middle of one. */
	if ((at - p->l4) & 1) {
		from = (__u16)(from << 8 | from >> 8);
		to = (__u16)(to << 8 | to >> 8);
	}
	return bpf_l4_csum_replace(skb, p->l4 + 16, from, to, 2);
}

/* The entry of the connection that a packet answers, or an ICMP error quotes, if it came through a balancer. `flow` is what the
 * table has under the packet's own key. */
static __always_inline struct tg_flow *tg_find_answered(struct __sk_buff *skb, const struct tg_packet *p, struct tg_flow *flow,
							struct tg_quote *quote)
{
	if (p->is_icmp_error) {
		if (tg_read_quote(skb, p, quote))
			return 0;
		quote->back_key.dir = TG_DIR_FORWARD;
		flow = tg_flow.lookup(&quote->back_key);
	}
	return flow && flow->kind == TG_FLOW_DSR && !tg_is_tcp_open(p) ? flow : 0;
}

/* Make the virtual address the source of an answer, or of an ICMP error about what was asked. */
static __always_inline int tg_answer(struct __sk_buff *skb, const struct tg_packet *p, struct tg_flow *flow,
				     const struct tg_quote *quote, __u8 hops)
{
	struct tg_addr vip = flow->addr;
	__be16 port = flow->port;
	if (p->is_icmp_error)
		return tg_rewrite_quote(skb, p, quote, false, &vip, port) || tg_rewrite(skb, p, true, &vip, 0, hops);
	if (tg_is_tcp_close(p))
		tg_set_state(flow, IPPROTO_TCP, TG_STATE_CLOSING);
	if (p->key.proto == IPPROTO_TCP && (p->tcp_flags & TG_TCP_SYN) && tg_clamp_segment(skb, p, flow->number))
		return -1;
	return tg_rewrite(skb, p, true, &vip, port, hops);
}

/* A pod's answer, on to its client. Not up the stack, where a virtual address from a pod's link looks forged. */
static __always_inline int tg_answer_of_pod(struct __sk_buff *skb, const struct tg_config *config, const struct tg_packet *p,
					    struct tg_flow *flow, const struct tg_quote *quote)
{
	__u32 zero = 0;
	struct tg_scratch *scratch = tg_scratch.lookup(&zero);
	if (!scratch)
		return TG_DROP(REWRITE);
	if (p->ttl <= 1)
		return TG_PASS(TTL);
	if (tg_answer(skb, p, flow, quote, 1))
		return TG_DROP(REWRITE);
	struct tg_local *neighbour = tg_local.lookup((struct tg_addr *)&p->key.dst);
	if (neighbour)
		return tg_to_pod(neighbour, TG_FORWARD_DSR_ANSWER);
	struct tg_range *range = tg_find_range(&p->key.dst);
	if (range && range->kind == TG_RANGE_PEER)
		return tg_to_peer(skb, config, range);
	if (range && range->kind == TG_RANGE_STACK)
		return TG_PASS(DSR_ANSWER);
	if (tg_find_next_hop(skb, p, &flow->addr, 0, &scratch->flow))
		return TG_DROP(NO_ROUTE);
	struct tg_addr via = scratch->flow.via;
	return tg_to_neighbour(skb, config, scratch->flow.ifindex, &via, TG_FORWARD_DSR_ANSWER);
}

#endif
