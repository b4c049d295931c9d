/* One cursor over the packet: from Ethernet to the tuple that names its flow. */
#ifndef TG_PARSE_H
#define TG_PARSE_H

#include "tg_maps.h"

#define TG_PARSED 0
#define TG_NOT_IP 1
#define TG_MALFORMED 2

#define TG_TCP_FIN 0x01
#define TG_TCP_SYN 0x02
#define TG_TCP_RST 0x04
#define TG_TCP_ACK 0x10

#define TG_IP_MF bpf_htons(0x2000)
#define TG_IP_OFFSET bpf_htons(0x1fff)

#define TG_IPV6_EXTENSIONS 6 /* headers followed before the packet counts as malformed */

struct tg_packet {
	struct tg_flow_key key; /* of the packet as it stands; ICMP echo puts its id on the asking side */
	__u32 l4;               /* offset of the transport header, bytes */
	__u8 is_ipv4;
	__u8 ttl;
	__u8 tcp_flags;
	__u8 has_ports;     /* 0: not TCP, UDP or ICMP echo; the key's ports are zero */
	__u8 is_icmp_error;
	__u8 is_later_fragment;
	__u8 is_first_fragment;
	__u8 pad;
	__u32 frag_id;
};

struct tg_ports {
	__be16 sport;
	__be16 dport;
};

/* Where the parsed packet is kept. Not the stack: what comes out of a map is unknown to the verifier, so that all ways through
 * the parser become one again. On the stack it would follow every family and protocol apart to the end of the program. */
BPF_PERCPU_ARRAY(tg_parsed, struct tg_packet, 1);

static __always_inline struct tg_packet *tg_get_packet(void)
{
	__u32 zero = 0;
	return tg_parsed.lookup(&zero);
}

/* The ports of later fragments are those of the first one. */
static __always_inline void tg_recall_fragment(struct tg_packet *p)
{
	struct tg_frag_key key = { .src = p->key.src, .dst = p->key.dst, .id = p->frag_id, .proto = p->key.proto };
	if (p->is_first_fragment) {
		struct tg_frag ports = { .sport = p->key.sport, .dport = p->key.dport };
		tg_frag.update(&key, &ports);
		return;
	}
	struct tg_frag *ports = tg_frag.lookup(&key);
	if (!ports)
		return;
	p->key.sport = ports->sport;
	p->key.dport = ports->dport;
	p->has_ports = 1;
}

static __always_inline int tg_parse_icmp(struct tg_packet *p, const __u8 *at, void *end)
{
	if ((void *)(at + 8) > end)
		return TG_MALFORMED;
	__u8 type = at[0];
	__be16 id = *(const __be16 *)(at + 4);
	bool v4 = p->is_ipv4;
	if (type == (v4 ? 8 : 128)) {
		p->key.sport = id;
		p->has_ports = 1;
	} else if (type == (v4 ? 0 : 129)) {
		p->key.dport = id;
		p->has_ports = 1;
	} else if (v4 ? (type == 3 || type == 11 || type == 12) : (type >= 1 && type <= 4)) {
		p->is_icmp_error = 1;
	}
	return TG_PARSED;
}

static __always_inline int tg_parse_l4(struct tg_packet *p, void *at, void *end)
{
	if (p->is_later_fragment)
		return TG_PARSED;
	if (p->key.proto == IPPROTO_TCP) {
		struct tcphdr *tcp = at;
		if ((void *)(tcp + 1) > end)
			return TG_MALFORMED;
		p->tcp_flags = ((__u8 *)tcp)[13];
		p->key.sport = tcp->source;
		p->key.dport = tcp->dest;
		p->has_ports = 1;
	} else if (p->key.proto == IPPROTO_UDP) {
		struct udphdr *udp = at;
		if ((void *)(udp + 1) > end)
			return TG_MALFORMED;
		p->key.sport = udp->source;
		p->key.dport = udp->dest;
		p->has_ports = 1;
	} else if (p->key.proto == IPPROTO_ICMP || p->key.proto == IPPROTO_ICMPV6) {
		return tg_parse_icmp(p, at, end);
	}
	return TG_PARSED;
}

static __always_inline int tg_parse_ipv4(struct tg_packet *p, void *data, __u32 offset, void *end)
{
	struct iphdr *ip = data + offset;
	if ((void *)(ip + 1) > end)
		return TG_MALFORMED;
	__u32 length = ip->ihl * 4;
	if (length < sizeof(*ip) || ip->version != 4)
		return TG_MALFORMED;
	p->is_ipv4 = 1;
	p->ttl = ip->ttl;
	p->l4 = offset + length;
	tg_map_ipv4(&p->key.src, ip->saddr);
	tg_map_ipv4(&p->key.dst, ip->daddr);
	p->key.proto = ip->protocol;
	p->frag_id = ip->id;
	p->is_later_fragment = (ip->frag_off & TG_IP_OFFSET) != 0;
	p->is_first_fragment = !p->is_later_fragment && (ip->frag_off & TG_IP_MF);
	return tg_parse_l4(p, data + offset + length, end);
}

static __always_inline int tg_parse_ipv6(struct tg_packet *p, void *data, __u32 offset, void *end)
{
	struct ipv6hdr *ip = data + offset;
	if ((void *)(ip + 1) > end)
		return TG_MALFORMED;
	if (ip->version != 6)
		return TG_MALFORMED;
	p->ttl = ip->hop_limit;
	tg_copy_ipv6(&p->key.src, &ip->saddr);
	tg_copy_ipv6(&p->key.dst, &ip->daddr);
	__u8 next = ip->nexthdr;
	__u32 at = offset + sizeof(*ip);
	for (int i = 0; i < TG_IPV6_EXTENSIONS; i++) {
		if (next != 0 && next != 43 && next != 44 && next != 60)
			break;
		__u8 *header = data + at;
		if ((void *)(header + 8) > end)
			return TG_MALFORMED;
		if (next == 44) {
			__be16 field = *(__be16 *)(header + 2);
			p->is_later_fragment = (field & bpf_htons(0xfff8)) != 0;
			p->is_first_fragment = !p->is_later_fragment && (field & bpf_htons(1));
			p->frag_id = *(__u32 *)(header + 4);
			at += 8;
		} else {
			at += (header[1] + 1) * 8;
		}
		next = header[0];
		if (at > 512) /* keeps the verifier's bound small; longer chains are attacks */
			return TG_MALFORMED;
	}
	p->key.proto = next;
	p->l4 = at;
	return tg_parse_l4(p, data + at, end);
}

/* Fill `p`, if there is one, from the IP header at `offset`. Returns TG_PARSED or TG_MALFORMED. */
static __always_inline int tg_parse_at(struct __sk_buff *skb, struct tg_packet *p, __u32 offset, bool v6)
{
	if (!p)
		return TG_MALFORMED;
	__builtin_memset(p, 0, sizeof(*p));
	__u32 want = offset + (v6 ? 60 : 40);
	if (skb->data_end - skb->data < want)
		bpf_skb_pull_data(skb, skb->len < want ? skb->len : want);
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	int verdict = v6 ? tg_parse_ipv6(p, data, offset, end) : tg_parse_ipv4(p, data, offset, end);
	if (verdict == TG_PARSED && (p->is_first_fragment || p->is_later_fragment))
		tg_recall_fragment(p);
	return verdict;
}

/* Fill `p`, if there is one, from the packet. Returns TG_PARSED, TG_NOT_IP or TG_MALFORMED. */
static __always_inline int tg_parse(struct __sk_buff *skb, struct tg_packet *p)
{
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return tg_parse_at(skb, p, ETH_HLEN, false);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return tg_parse_at(skb, p, ETH_HLEN, true);
	return TG_NOT_IP;
}

#endif
