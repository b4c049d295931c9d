/* One cursor over a received frame: from Ethernet to the flow it belongs to. */
#ifndef LB_PARSE_H
#define LB_PARSE_H

#include "lb_maps.h"

#define LB_PARSED 0
#define LB_NOT_IP 1
#define LB_MALFORMED 2

#define LB_TAGS 2 /* VLAN tags that are followed */
#define LB_IPV6_EXTENSIONS 6
#define LB_IPV6_HEADERS 512 /* bytes of extension headers that are followed */

#define LB_IP_MF bpf_htons(0x2000)
#define LB_IP_OFFSET bpf_htons(0x1fff)

/* What the packet is to the load balancer. */
#define LB_PORTS 0    /* TCP or UDP: `flow` is the packet's */
#define LB_ERROR 1    /* an ICMP error: `flow` is that of the quoted packet, as the client sends it */
#define LB_ECHO 2     /* an ICMP echo request */
#define LB_FRAGMENT 3 /* a later fragment; the ports are not in it */
#define LB_OTHER 4

union lb_flow {
	struct tg_lb_flow4_key v4;
	struct tg_lb_flow6_key v6;
} __attribute__((aligned(8)));

struct lb_packet {
	union lb_flow *flow; /* apart, so that everything else may live in registers */
	__be32 tag[LB_TAGS]; /* as in the frame: protocol and TCI */
	__be32 frag_id;
	__u32 l3; /* offsets, bytes */
	__u32 l4;
	__u32 ports; /* of `flow`, source and destination as they follow each other in a header */
	__u16 length; /* of the IP packet, bytes */
	__u8 kind;
	__u8 proto; /* of `flow` */
	__u8 ttl;
	__u8 tcp_flags;
	bool is_first_fragment;
	bool is_later_fragment;
};

/* The bound is for the verifier, which forgets it on the way. */
static __always_inline void *lb_at_ip(void *data, const struct lb_packet *p)
{
	return data + (p->l3 & 31);
}

#define barrier_var(var) asm volatile("" : "+r"(var))

#define LB_TCP_SYN 0x02
#define LB_TCP_ACK 0x10

static __always_inline int lb_parse_ethernet(struct xdp_md *ctx, struct lb_packet *p, __be16 *proto)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	if ((void *)(eth + 1) > end)
		return LB_NOT_IP;
	*proto = eth->h_proto;
	p->l3 = sizeof(*eth);
	p->tag[0] = 0;
	p->tag[1] = 0;
#pragma unroll
	for (int i = 0; i < LB_TAGS; i++) {
		if (*proto != bpf_htons(ETH_P_8021Q) && *proto != bpf_htons(ETH_P_8021AD))
			break;
		__be16 *tag = data + sizeof(*eth) - 2 + 4 * i;
		if ((void *)(tag + 3) > end)
			return LB_NOT_IP;
		p->tag[i] = *(__be32 *)tag;
		*proto = tag[2];
		p->l3 += 4;
	}
	return LB_PARSED;
}

/* Words made of what follows each other in memory. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define lb_word(first, second) ((__u32)(first) | (__u32)(second) << 16)
#define lb_first(word) ((__u16)(word))
#define lb_second(word) ((__u16)((word) >> 16))
#define lb_first_byte(byte) ((__u16)(byte)) /* of two */
#define lb_pair(first, second) ((__u64)(__u32)(first) | (__u64)(__u32)(second) << 32)
#define lb_pair_first(pair) ((__u32)(pair))
#define lb_pair_second(pair) ((__u32)((pair) >> 32))
#else
#define lb_word(first, second) ((__u32)(first) << 16 | (__u32)(second))
#define lb_first(word) ((__u16)((word) >> 16))
#define lb_second(word) ((__u16)(word))
#define lb_first_byte(byte) ((__u16)(byte) << 8)
#define lb_pair(first, second) ((__u64)(__u32)(first) << 32 | (__u64)(__u32)(second))
#define lb_pair_first(pair) ((__u32)((pair) >> 32))
#define lb_pair_second(pair) ((__u32)(pair))
#endif

static __always_inline void lb_set_ports(struct lb_packet *p, bool v6, __u32 ports)
{
	p->ports = ports;
	*(v6 ? &p->flow->v6.sport : &p->flow->v4.sport) = lb_first(ports);
	*(v6 ? &p->flow->v6.dport : &p->flow->v4.dport) = lb_second(ports);
}

/* And all that is padding. */
static __always_inline void lb_set_proto(struct lb_packet *p, bool v6, __u8 proto)
{
	p->proto = proto;
	*(__u16 *)(v6 ? &p->flow->v6.proto : &p->flow->v4.proto) = lb_first_byte(proto);
	*(v6 ? &p->flow->v6.pad_middle : &p->flow->v4.pad_end) = 0;
}

/* The quoted packet is one from the backend: its ports are the flow's, turned. */
static __always_inline int lb_parse_quoted_ports(struct lb_packet *p, bool v6, const __be16 *ports, void *end)
{
	if ((void *)(ports + 2) > end)
		return LB_MALFORMED;
	__u32 word = *(const __u32 *)ports;
	lb_set_ports(p, v6, lb_word(lb_second(word), lb_first(word)));
	return LB_PARSED;
}

/* An ICMP error is part of the flow that it quotes; nothing else of ICMP has a flow. */
static __always_inline int lb_parse_icmp(struct lb_packet *p, bool v6, __u8 *icmp, void *end)
{
	if ((void *)(icmp + 8) > end)
		return LB_MALFORMED;
	if (icmp[0] == (v6 ? 128 : 8) && icmp[1] == 0)
		p->kind = LB_ECHO;
	if (v6) {
		struct ipv6hdr *quoted = (void *)(icmp + 8);
		if (icmp[0] < 1 || icmp[0] > 4 || (void *)(quoted + 1) > end)
			return LB_PARSED;
		struct tg_addr from;
		tg_copy_ipv6(&from, &quoted->saddr);
		if (!tg_addr_equal(&from, &p->flow->v6.daddr))
			return LB_PARSED;
		if (quoted->nexthdr != IPPROTO_TCP && quoted->nexthdr != IPPROTO_UDP)
			return LB_PARSED;
		tg_copy_ipv6(&p->flow->v6.saddr, &quoted->daddr);
		lb_set_proto(p, v6, quoted->nexthdr);
		p->kind = LB_ERROR;
		return lb_parse_quoted_ports(p, v6, (void *)(quoted + 1), end);
	}
	struct iphdr *quoted = (void *)(icmp + 8);
	if ((icmp[0] != 3 && icmp[0] != 11 && icmp[0] != 12) || (void *)(quoted + 1) > end)
		return LB_PARSED;
	if (quoted->saddr != p->flow->v4.daddr || (quoted->frag_off & LB_IP_OFFSET) || quoted->ihl < 5)
		return LB_PARSED;
	if (quoted->protocol != IPPROTO_TCP && quoted->protocol != IPPROTO_UDP)
		return LB_PARSED;
	p->flow->v4.saddr = quoted->daddr;
	lb_set_proto(p, v6, quoted->protocol);
	p->kind = LB_ERROR;
	return lb_parse_quoted_ports(p, v6, (void *)quoted + quoted->ihl * 4, end);
}

static __always_inline int lb_parse_l4(struct lb_packet *p, bool v6, __u8 proto, void *at, void *end)
{
	if (p->kind == LB_FRAGMENT)
		return LB_PARSED;
	if (proto == IPPROTO_TCP) {
		struct tcphdr *tcp = at;
		if ((void *)(tcp + 1) > end)
			return LB_MALFORMED;
		p->kind = LB_PORTS;
		p->tcp_flags = ((__u8 *)tcp)[13];
		lb_set_ports(p, v6, *(__u32 *)tcp);
		return LB_PARSED;
	}
	if (proto == IPPROTO_UDP) {
		struct udphdr *udp = at;
		if ((void *)(udp + 1) > end)
			return LB_MALFORMED;
		p->kind = LB_PORTS;
		lb_set_ports(p, v6, *(__u32 *)udp);
		return LB_PARSED;
	}
	if (proto == (v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		return lb_parse_icmp(p, v6, at, end);
	return LB_PARSED;
}

static __always_inline int lb_parse_ipv4(struct xdp_md *ctx, struct lb_packet *p)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = lb_at_ip(data, p);
	if ((void *)(ip + 1) > end)
		return LB_MALFORMED;
	__u32 header = ip->ihl * 4;
	p->length = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || p->length < header || p->l3 + p->length > end - data)
		return LB_MALFORMED;
	p->l4 = p->l3 + header;
	p->ttl = ip->ttl;
	p->flow->v4.saddr = ip->saddr;
	p->flow->v4.daddr = ip->daddr;
	lb_set_ports(p, false, 0);
	lb_set_proto(p, false, ip->protocol);
	p->kind = LB_OTHER;
	p->tcp_flags = 0;
	p->is_first_fragment = false;
	p->is_later_fragment = false;
	if (ip->frag_off & (LB_IP_MF | LB_IP_OFFSET)) {
		p->frag_id = ip->id;
		if (ip->frag_off & LB_IP_OFFSET)
			p->kind = LB_FRAGMENT;
		else
			p->is_first_fragment = true;
	}
	return lb_parse_l4(p, false, ip->protocol, (void *)ip + header, end);
}

static __always_inline int lb_parse_ipv6(struct xdp_md *ctx, struct lb_packet *p)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ipv6hdr *ip = lb_at_ip(data, p);
	if ((void *)(ip + 1) > end)
		return LB_MALFORMED;
	__u32 length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || length > 65535 || p->l3 + length > end - data)
		return LB_MALFORMED;
	p->length = length;
	p->ttl = ip->hop_limit;
	tg_copy_ipv6(&p->flow->v6.saddr, &ip->saddr);
	tg_copy_ipv6(&p->flow->v6.daddr, &ip->daddr);
	lb_set_ports(p, true, 0);
	p->kind = LB_OTHER;
	p->tcp_flags = 0;
	p->is_first_fragment = false;
	p->is_later_fragment = false;
	__u8 next = ip->nexthdr;
	__u32 at = sizeof(*ip);
	for (int i = 0; i < LB_IPV6_EXTENSIONS; i++) {
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_FRAGMENT && next != IPPROTO_DSTOPTS)
			break;
		__u8 *header = (void *)ip + at;
		if ((void *)(header + 8) > end)
			return LB_MALFORMED;
		if (next == IPPROTO_FRAGMENT) {
			__be16 field = *(__be16 *)(header + 2);
			p->frag_id = *(__be32 *)(header + 4);
			if (field & bpf_htons(0xfff8))
				p->kind = LB_FRAGMENT;
			else if (field & bpf_htons(1))
				p->is_first_fragment = true;
			at += 8;
		} else {
			at += (header[1] + 1) * 8;
		}
		next = header[0];
		if (at > LB_IPV6_HEADERS) /* keeps the verifier's bound small; longer chains are attacks */
			return LB_MALFORMED;
		if (p->kind == LB_FRAGMENT) /* what follows is not a header */
			break;
	}
	p->l4 = p->l3 + at;
	lb_set_proto(p, true, next);
	return lb_parse_l4(p, true, next, (void *)ip + at, end);
}

#endif
