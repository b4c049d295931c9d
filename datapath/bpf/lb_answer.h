/* What the load balancer itself answers: pings of a virtual address, and packets that cannot go on. */
#ifndef LB_ANSWER_H
#define LB_ANSWER_H

#include "lb_send.h"

#define LB_EXPIRED 0
#define LB_TOO_BIG 1

#define LB_QUOTE_MAX4 512  /* RFC 1812: an error is no longer than 576 bytes */
#define LB_QUOTE_MAX6 1024 /* RFC 4443: nor than 1280 */

/* A token bucket a CPU, refilled each second. */
struct lb_budget {
	__u64 second;
	__u64 spent;
};
BPF_PERCPU_ARRAY(lb_budget, struct lb_budget, 1);

static __always_inline bool lb_may_answer(void)
{
	__u32 zero = 0;
	struct tg_lb_config *config = tg_lb_config.lookup(&zero);
	struct lb_budget *budget = lb_budget.lookup(&zero);
	if (!config || !budget)
		return false;
	__u64 second = tg_now() / TG_SECOND;
	if (budget->second != second) {
		budget->second = second;
		budget->spent = 0;
	}
	return budget->spent++ < config->icmp_rate;
}

/* An answer goes to the source: which must be one host, elsewhere. */
static __always_inline bool lb_is_answerable(const struct lb_packet *p, bool v6)
{
	if (v6) {
		__u32 first = bpf_ntohl(p->flow->v6.saddr.word[0]);
		__u32 rest = p->flow->v6.saddr.word[1] | p->flow->v6.saddr.word[2];
		return first >> 24 != 0xff && (first | rest);
	}
	__u32 network = bpf_ntohl(p->flow->v4.saddr) >> 24;
	return network && network != 127 && network < 224;
}

static __always_inline void lb_turn_macs(__be32 *macs, const void *eth)
{
	const __be16 *old = eth;
	__be16 *turned = (__be16 *)macs;
	turned[0] = old[3];
	turned[1] = old[4];
	turned[2] = old[5];
	turned[3] = old[0];
	turned[4] = old[1];
	turned[5] = old[2];
}

/* Turn the echo request round. The addresses change places, which no checksum sees. */
static __always_inline int lb_answer_echo(struct xdp_md *ctx, struct lb_packet *p, bool v6)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	if (p->is_first_fragment)
		return LB_DROP(FRAGMENT);
	if (!lb_is_answerable(p, v6))
		return LB_DROP(BAD_SOURCE);
	__u32 l4 = p->l4 - p->l3;
	struct ipv6hdr *ip6 = lb_at_ip(data, p);
	struct iphdr *ip4 = (void *)ip6;
	__u8 *icmp = (void *)ip6 + (l4 & 1023);
	if ((void *)(icmp + 8) > end || data + ETH_HLEN + 4 * LB_TAGS > end)
		return LB_DROP(MALFORMED);
	__be32 macs[3];
	lb_turn_macs(macs, data);
	__be16 *sum = (__be16 *)(icmp + 2);
	if (v6) {
		if ((void *)(ip6 + 1) > end)
			return LB_DROP(MALFORMED);
		ip6->saddr = ip6->daddr;
		__builtin_memcpy(&ip6->daddr, p->flow->v6.saddr.word, 16);
		ip6->hop_limit = LB_OUTER_TTL;
		*sum = tg_csum_update(*sum, bpf_htons(128 << 8), bpf_htons(129 << 8));
		icmp[0] = 129;
	} else {
		if ((void *)(ip4 + 1) > end)
			return LB_DROP(MALFORMED);
		ip4->saddr = p->flow->v4.daddr;
		ip4->daddr = p->flow->v4.saddr;
		ip4->check = tg_csum_update(ip4->check, bpf_htons((__u16)(ip4->ttl << 8)), bpf_htons(LB_OUTER_TTL << 8));
		ip4->ttl = LB_OUTER_TTL;
		*sum = tg_csum_update(*sum, bpf_htons(8 << 8), 0);
		icmp[0] = 0;
	}
	((__be32 *)data)[0] = macs[0];
	((__be32 *)data)[1] = macs[1];
	((__be32 *)data)[2] = macs[2];
	return lb_exit(XDP_TX, TG_FORWARD_ECHO);
}

/* How much of the packet an error quotes: the largest of a few lengths that it has. */
static __always_inline __u32 lb_quote_length(const struct lb_packet *p, bool v6)
{
	__u32 there = p->length;
	if (v6)
		return there >= 1024 ? 1024 : there >= 512 ? 512 : there >= 256 ? 256 : there >= 128 ? 128 : 48;
	return there >= 512 ? 512 : there >= 256 ? 256 : there >= 128 ? 128 : there >= 64 ? 64 : 28;
}

/* The sum of the quoted bytes at `at`; -1 if they are not there. Each length apart, since the verifier wants a constant one. */
static __always_inline __s64 lb_sum_quote(void *at, void *end, __u32 length, __u32 sum)
{
	switch (length) {
#define LB_SUM(bytes) \
	case bytes: \
		return at + (bytes) > end ? -1 : tg_csum_diff(0, 0, at, bytes, sum);
	LB_SUM(28) LB_SUM(48) LB_SUM(64) LB_SUM(128) LB_SUM(256) LB_SUM(512)
#undef LB_SUM
	case 1024:
		if (at + 1024 > end)
			return -1;
		sum = tg_csum_diff(0, 0, at, 512, sum);
		return tg_csum_diff(0, 0, at + 512, 512, sum);
	}
	return -1;
}

/* Tell the sender, as the virtual address, that its packet went no further; the packet as received is quoted. */
static __always_inline int lb_answer_error(struct xdp_md *ctx, struct lb_packet *p, bool v6, __u32 why, __u32 mtu)
{
	if (p->kind == LB_ERROR) /* RFC 1122: never about an error */
		return LB_DROP(NO_ROUTE);
	if (!lb_is_answerable(p, v6))
		return LB_DROP(BAD_SOURCE);
	if (!lb_may_answer())
		return LB_DROP(ICMP_RATE);
	__u32 quoted = lb_quote_length(p, v6);
	__u32 header = v6 ? sizeof(struct ipv6hdr) + 8 : sizeof(struct iphdr) + 8;
	int frame = ctx->data_end - ctx->data;
	barrier_var(frame); /* else clang takes `data_end` from a number, which the verifier forbids */
	if (bpf_xdp_adjust_tail(ctx, (int)(p->l3 + quoted) - frame))
		return LB_DROP(REWRITE);
	if (bpf_xdp_adjust_head(ctx, -(int)header))
		return LB_DROP(REWRITE);
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	void *ip = lb_at_ip(data, p);
	if (data + header + ETH_HLEN + 4 * LB_TAGS > end || ip + header > end)
		return LB_DROP(REWRITE);
	__be32 macs[3];
	lb_turn_macs(macs, data + header);
	lb_write_ethernet(data, macs, p, v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP));
	__be32 *icmp = ip + header - 8;
	if (v6) {
		struct ipv6hdr *ip6 = ip;
		*(__be32 *)ip6 = bpf_htonl(0x60000000);
		ip6->payload_len = bpf_htons((__u16)(quoted + 8));
		ip6->nexthdr = IPPROTO_ICMPV6;
		ip6->hop_limit = LB_OUTER_TTL;
		__builtin_memcpy(&ip6->saddr, p->flow->v6.daddr.word, 16);
		__builtin_memcpy(&ip6->daddr, p->flow->v6.saddr.word, 16);
		icmp[0] = why == LB_TOO_BIG ? bpf_htonl(2 << 24) : bpf_htonl(3 << 24);
		icmp[1] = bpf_htonl(mtu);
		__s64 sum = lb_sum_quote(ip + header, end, quoted, 0);
		if (sum < 0)
			return LB_DROP(REWRITE);
		__u64 all = sum + bpf_htonl(quoted + 8) + (__u64)bpf_htonl(IPPROTO_ICMPV6) + icmp[0] + icmp[1];
		for (int i = 0; i < 4; i++)
			all += (__u64)p->flow->v6.saddr.word[i] + p->flow->v6.daddr.word[i];
		((__be16 *)icmp)[1] = lb_fold64(all);
	} else {
		struct iphdr *ip4 = ip;
		__builtin_memset(ip4, 0, sizeof(*ip4));
		*(__be16 *)ip4 = bpf_htons(0x4500);
		ip4->tot_len = bpf_htons((__u16)(quoted + header));
		ip4->ttl = LB_OUTER_TTL;
		ip4->protocol = IPPROTO_ICMP;
		ip4->saddr = p->flow->v4.daddr;
		ip4->daddr = p->flow->v4.saddr;
		__u64 own = bpf_htons(0x4500) + ip4->tot_len + bpf_htons(LB_OUTER_TTL << 8 | IPPROTO_ICMP) + (__u64)ip4->saddr + ip4->daddr;
		ip4->check = lb_fold64(own);
		icmp[0] = why == LB_TOO_BIG ? bpf_htonl(3 << 24 | 4 << 16) : bpf_htonl(11 << 24);
		icmp[1] = bpf_htonl(mtu);
		__s64 sum = lb_sum_quote(ip + header, end, quoted, 0);
		if (sum < 0)
			return LB_DROP(REWRITE);
		((__be16 *)icmp)[1] = lb_fold64((__u64)sum + icmp[0] + icmp[1]);
	}
	return lb_exit(XDP_TX, why == LB_TOO_BIG ? TG_FORWARD_TOO_BIG : TG_FORWARD_EXPIRED);
}

#endif
