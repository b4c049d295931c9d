/* Changing a packet in place: addresses and ports with their checksums, hop count, Ethernet addresses. */
#ifndef TG_REWRITE_H
#define TG_REWRITE_H

#include "tg_csum.h"
#include "tg_parse.h"

/* Both ends of the tunnel use fixed MAC addresses: the receiving device has the first, no device has the second (VXLAN drops
 * frames whose source is the receiver's own address). */

/* What a checksum must change by when an address of 16 bytes does: what bpf_l4_csum_replace takes as `to`, with `from` 0. */
static __always_inline __u32 tg_sum_change(const struct tg_addr *from, const struct tg_addr *to)
{
	struct tg_addr old = *from, new = *to; /* the helper wants them on the stack */
	return tg_csum_diff(old.word, sizeof(old), new.word, sizeof(new), 0);
}

/* Let the transport checksum follow a changed address and port. The helper knows about checksum offload; we cannot. */
static __always_inline int tg_fix_l4(struct __sk_buff *skb, const struct tg_packet *p, const struct tg_addr *from,
				     const struct tg_addr *to, __be16 from_port, __be16 to_port)
{
	__u32 at;
	__u64 flags = 0;
	if (p->key.proto == IPPROTO_TCP) {
		at = p->l4 + 16;
	} else if (p->key.proto == IPPROTO_UDP) {
		at = p->l4 + 6;
		flags = BPF_F_MARK_MANGLED_0;
	} else {
		at = p->l4 + 2;
	}
	if (!p->is_ipv4) {
		if (bpf_l4_csum_replace(skb, at, 0, tg_sum_change(from, to), BPF_F_PSEUDO_HDR | flags))
			return -1;
	} else if (p->key.proto != IPPROTO_ICMP) {
		if (bpf_l4_csum_replace(skb, at, from->word[3], to->word[3], BPF_F_PSEUDO_HDR | flags | 4))
			return -1;
	}
	if (from_port != to_port && bpf_l4_csum_replace(skb, at, from_port, to_port, flags | 2))
		return -1;
	return 0;
}

/* Store the address (of the source or the destination) and take `hops` from the hop count. */
static __always_inline int tg_store_address(struct __sk_buff *skb, const struct tg_packet *p, bool source,
					    const struct tg_addr *to, __u8 hops)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	if (p->is_ipv4) {
		struct iphdr *ip = data + ETH_HLEN;
		if ((void *)(ip + 1) > end)
			return -1;
		__be32 from = source ? ip->saddr : ip->daddr;
		__u16 check = tg_csum_update(ip->check, from, to->word[3]);
		if (hops) {
			check = tg_csum_update(check, bpf_htons((__u16)(ip->ttl << 8)), bpf_htons((__u16)((ip->ttl - hops) << 8)));
			ip->ttl -= hops;
		}
		ip->check = check;
		if (source)
			ip->saddr = to->word[3];
		else
			ip->daddr = to->word[3];
		return 0;
	}
	struct ipv6hdr *ip = data + ETH_HLEN;
	if ((void *)(ip + 1) > end)
		return -1;
	__be32 *address = source ? ip->saddr.in6_u.u6_addr32 : ip->daddr.in6_u.u6_addr32;
	address[0] = to->word[0];
	address[1] = to->word[1];
	address[2] = to->word[2];
	address[3] = to->word[3];
	ip->hop_limit -= hops;
	return 0;
}

/* Give the packet another source (or destination) address and port. Fails only if the kernel refuses. */
static __always_inline int tg_rewrite(struct __sk_buff *skb, const struct tg_packet *p, bool source,
				      const struct tg_addr *to, __be16 to_port, __u8 hops)
{
	const struct tg_addr *from = source ? &p->key.src : &p->key.dst;
	__be16 from_port = source ? p->key.sport : p->key.dport;
	if (p->is_later_fragment)
		return tg_store_address(skb, p, source, to, hops);
	if (tg_fix_l4(skb, p, from, to, from_port, to_port))
		return -1;
	if (from_port != to_port) {
		__u32 at = p->l4 + (source ? 0 : 2);
		if (p->key.proto == IPPROTO_ICMP || p->key.proto == IPPROTO_ICMPV6)
			at = p->l4 + 4;
		if (bpf_skb_store_bytes(skb, at, &to_port, sizeof(to_port), 0))
			return -1;
	}
	return tg_store_address(skb, p, source, to, hops);
}

static __always_inline int tg_set_tunnel_macs(struct __sk_buff *skb)
{
	const __u8 macs[12] = { 0x02, 0x74, 0x67, 0x00, 0x00, 0x02, 0x02, 0x74, 0x67, 0x00, 0x00, 0x03 };
	__u8 *at = (void *)(long)skb->data;
	if ((void *)(at + sizeof(macs)) > (void *)(long)skb->data_end)
		return -1;
	__builtin_memcpy(at, macs, sizeof(macs));
	return 0;
}

/* Tell the tunnel device where to send the packet and under which VNI. */
static __always_inline int tg_set_tunnel(struct __sk_buff *skb, const struct tg_addr *endpoint, __u32 vni)
{
	struct bpf_tunnel_key key = { .tunnel_id = vni, .tunnel_ttl = 64 };
	__u64 flags = BPF_F_ZERO_CSUM_TX;
	if (tg_addr_is_ipv4(endpoint)) {
		key.remote_ipv4 = bpf_ntohl(endpoint->word[3]);
	} else {
		flags = BPF_F_TUNINFO_IPV6;
		__builtin_memcpy(key.remote_ipv6, endpoint->word, 16);
	}
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags);
}

#endif
