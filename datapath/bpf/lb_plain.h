/* The packets that most are: TCP or UDP in IPv4 or IPv6 with nothing between the headers. Whatever else there is, is for another
 * program, so that these keep their registers. */
#ifndef LB_PLAIN_H
#define LB_PLAIN_H

#include "lb_parse.h"

#define LB_PLAIN_L4 20 /* bytes of the transport header that must be there: those of TCP, also of UDP */

#define lb_load64(at) (*(const __u64 *)(at))

/* The rest of what a plain packet is. Keys are stored in double words: a load that spans two smaller stores has to wait. */
static __always_inline void lb_set_plain(struct lb_packet *p, bool v6, __u8 proto, const __u8 *l4)
{
	__u32 ports = *(const __u32 *)l4;
	__u32 destination = lb_word(lb_second(ports), lb_first_byte(proto));
	p->kind = LB_PORTS;
	p->proto = proto;
	p->ports = ports;
	p->tcp_flags = l4[13];
	p->tag[0] = 0;
	p->tag[1] = 0;
	p->frag_id = 0;
	p->l3 = ETH_HLEN;
	p->l4 = ETH_HLEN + (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	p->is_first_fragment = false;
	p->is_later_fragment = false;
	const void *ip = l4 - (v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	__u64 *key = (__u64 *)p->flow;
	if (v6) {
		const struct ipv6hdr *ip6 = ip;
		key[0] = lb_load64(&ip6->daddr);
		key[1] = lb_load64((void *)&ip6->daddr + 8);
		key[2] = lb_pair(destination, lb_first(ports));
		key[3] = lb_load64(&ip6->saddr);
		key[4] = lb_load64((void *)&ip6->saddr + 8);
	} else {
		const struct iphdr *ip4 = ip;
		key[0] = lb_pair(ip4->daddr, destination);
		key[1] = lb_pair(ip4->saddr, lb_first(ports));
	}
}

static __always_inline int lb_parse_plain_ipv4(struct xdp_md *ctx, struct lb_packet *p)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	if ((void *)(ip + 1) + LB_PLAIN_L4 > end || *(__u8 *)ip != 0x45 || (ip->frag_off & (LB_IP_MF | LB_IP_OFFSET)) || ip->ttl <= 1)
		return -1;
	__u32 length = bpf_ntohs(ip->tot_len);
	__u8 proto = ip->protocol;
	if ((proto != IPPROTO_TCP && proto != IPPROTO_UDP) || length < sizeof(*ip) || length + ETH_HLEN > end - data)
		return -1;
	p->length = length;
	p->ttl = ip->ttl;
	lb_set_plain(p, false, proto, (void *)(ip + 1));
	return 0;
}

static __always_inline int lb_parse_plain_ipv6(struct xdp_md *ctx, struct lb_packet *p)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ipv6hdr *ip = data + ETH_HLEN;
	if ((void *)(ip + 1) + LB_PLAIN_L4 > end || *(__u8 *)ip >> 4 != 6 || ip->hop_limit <= 1)
		return -1;
	__u32 length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	__u8 proto = ip->nexthdr;
	if ((proto != IPPROTO_TCP && proto != IPPROTO_UDP) || length > 65535 || length + ETH_HLEN > end - data)
		return -1;
	p->length = length;
	p->ttl = ip->hop_limit;
	lb_set_plain(p, true, proto, (void *)(ip + 1));
	return 0;
}

#endif
