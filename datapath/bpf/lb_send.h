/* The ways out: encapsulated to a backend, or back to who sent the packet. */
#ifndef LB_SEND_H
#define LB_SEND_H

#include "lb_stages.h"
#include "lb_select.h"
#include "tg_csum.h"

#define LB_HOP_NS 100000000ULL /* how long a way is believed */
#define LB_OUTER_TTL 64

static __always_inline __u16 lb_fold64(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return tg_csum_fold((__u32)((sum & 0xffff) + (sum >> 16)));
}

/* Write the 12 bytes of both link addresses, the tags, and the protocol. `at` has room for LB_TAGS tags. */
static __always_inline void lb_write_ethernet(__be32 *at, const __be32 *macs, const struct lb_packet *p, __be16 proto)
{
	at[0] = macs[0];
	at[1] = macs[1];
	at[2] = macs[2];
	__be16 *after = (__be16 *)(at + 3);
	if (p->tag[0]) {
		at[3] = p->tag[0];
		after += 2;
		if (p->tag[1]) {
			at[4] = p->tag[1];
			after += 2;
		}
	}
	*after = proto;
}

/* Ask the kernel for the way to `to`; every bit of its answer is in `hop`. Returns 0 or a TG_DROP reason. An ifindex of zero:
 * the way is known, the next hop's link address is not. */
static __always_inline __u32 lb_find_way(struct xdp_md *ctx, const struct tg_addr *to, struct tg_hop *hop)
{
	/* The length asks for the route's MTU in return (kernel 5.12). */
	struct bpf_fib_lookup fib = { .ifindex = ctx->ingress_ifindex, .tot_len = 1 };
	if (tg_addr_is_ipv4(to)) {
		fib.family = AF_INET;
		fib.ipv4_dst = to->word[3];
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_dst, to->word, 16);
	}
	long verdict = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	hop->ifindex = 0;
	hop->mtu = 65535; /* without a neighbour the kernel does not say it */
	if (verdict == BPF_FIB_LKUP_RET_NO_NEIGH)
		return 0;
	if (verdict == BPF_FIB_LKUP_RET_FWD_DISABLED)
		return TG_DROP_NO_FORWARDING;
	if (verdict != BPF_FIB_LKUP_RET_SUCCESS)
		return TG_DROP_NO_ROUTE;
	hop->ifindex = fib.ifindex;
	hop->mtu = fib.mtu_result;
	__builtin_memcpy(hop->macs, fib.dmac, 6);
	__builtin_memcpy(hop->macs + 6, fib.smac, 6);
	return 0;
}

/* Whether the way to a backend is known on this CPU, which is looked at once in each tick of the kernel's clock. */
static __always_inline bool lb_is_hop_fresh(const struct tg_backend *backend, struct tg_hop *hop)
{
	if (hop->born != backend->born)
		return false;
	__u32 jiffy = tg_jiffies();
	if (hop->jiffy == jiffy)
		return true;
	__u64 now = tg_now();
	if (now >= hop->until_ns)
		return false;
	hop->jiffy = jiffy;
	hop->seen_s = now >> LB_SECOND_SHIFT;
	return true;
}

/* The way to a backend, looked up at most every LB_HOP_NS on this CPU. Returns 0 or a TG_DROP reason. */
static __always_inline __u32 lb_refresh_hop(struct xdp_md *ctx, const struct tg_backend *backend, struct tg_hop *hop,
					    bool translates)
{
	if ((backend->flags & TG_BACKEND_HERE) && !translates) {
		hop->born = 0;
		hop->ifindex = 0;
		hop->mtu = 65535;
		return 0;
	}
	if (lb_is_hop_fresh(backend, hop))
		return 0;
	hop->born = 0;
	struct tg_addr to = backend->addr;
	__u32 refused = lb_find_way(ctx, &to, hop);
	if (refused || !hop->ifindex)
		return refused;
	hop->born = backend->born;
	hop->until_ns = tg_now() + LB_HOP_NS;
	return 0;
}

/* Bits that differ between flows and stay within one, for the outer source: the receiver's queues are chosen by it. */
static __always_inline __u32 lb_spread(const struct lb_packet *p, bool v6)
{
	__u32 bits;
	if (v6)
		bits = p->flow->v6.saddr.word[0] ^ p->flow->v6.saddr.word[1] ^ p->flow->v6.saddr.word[2] ^ p->flow->v6.saddr.word[3] ^
		       p->ports;
	else
		bits = p->flow->v4.saddr ^ p->ports;
	bits *= 0x9e3779b1; /* 2^32 over the golden ratio (Knuth, TAOCP 6.4) */
	return bits ^ bits >> 16;
}

/* One hop less, as any router takes it. Returns -1 for what cannot be. */
static __always_inline int lb_take_hop(void *at, void *end, bool v6)
{
	if (v6) {
		struct ipv6hdr *ip = at;
		if ((void *)(ip + 1) > end)
			return -1;
		ip->hop_limit--;
	} else {
		struct iphdr *ip = at;
		if ((void *)(ip + 1) > end)
			return -1;
		__u32 sum = ip->check + bpf_htons(0x0100); /* RFC 1141 */
		ip->check = (__u16)(sum + (sum >= 0xffff));
		ip->ttl--;
	}
	return 0;
}

static __always_inline void lb_write_outer_ipv4(struct iphdr *ip, const struct lb_packet *p, bool v6, __u8 tos, __be32 source,
						__be32 to)
{
	__be16 begin = bpf_htons(0x4500 | tos), length = bpf_htons((__u16)(p->length + sizeof(*ip)));
	__be16 way = bpf_htons(LB_OUTER_TTL << 8 | (v6 ? IPPROTO_IPV6 : IPPROTO_IPIP));
	__u64 sum = (__u64)source + to + begin + length + bpf_htons(0x4000) + way;
	__be32 *word = (__be32 *)ip;
	word[0] = lb_word(begin, length);
	word[1] = lb_word(0, bpf_htons(0x4000)); /* RFC 6864: the id means nothing where fragmentation is forbidden */
	word[2] = lb_word(way, lb_fold64(sum));
	word[3] = source;
	word[4] = to;
}

static __always_inline void lb_write_outer_ipv6(struct ipv6hdr *ip, const struct lb_packet *p, bool v6, __u8 tos,
						const struct tg_addr *source, __be32 last, const struct tg_addr *to)
{
	*(__be32 *)ip = bpf_htonl(0x60000000 | (__u32)tos << 20);
	ip->payload_len = bpf_htons(p->length);
	ip->nexthdr = v6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	ip->hop_limit = LB_OUTER_TTL;
	__be32 *saddr = ip->saddr.in6_u.u6_addr32, *daddr = ip->daddr.in6_u.u6_addr32;
	saddr[0] = source->word[0];
	saddr[1] = source->word[1];
	saddr[2] = source->word[2];
	saddr[3] = last;
	daddr[0] = to->word[0];
	daddr[1] = to->word[1];
	daddr[2] = to->word[2];
	daddr[3] = to->word[3];
}

/* Send what is complete. A tagged packet leaves by the device it came from, with its tags. */
static __always_inline int lb_transmit(struct xdp_md *ctx, const struct lb_packet *p, __u32 ifindex, __u32 reason)
{
	if (p->tag[0] || ifindex == ctx->ingress_ifindex)
		return lb_exit(XDP_TX, reason);
	return lb_exit(bpf_redirect(ifindex, 0), reason);
}

/* Put an outer header before the packet and send it to the backend over `hop`. `has_way`: its `ifindex` is not 0. */
static __always_inline int lb_encapsulate(struct xdp_md *ctx, struct lb_packet *p, bool v6, const struct tg_service *service,
					  const struct tg_backend *backend, const struct tg_hop *hop, bool outer_v6, bool has_way)
{
	__u32 header = outer_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	if (!(outer_v6 ? service->source6.word[0] : service->source4.word[3]))
		return LB_DROP(NO_SOURCE);
	__be32 macs[3];
	if (bpf_xdp_adjust_head(ctx, -(int)header))
		return LB_DROP(REWRITE);
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	void *ip = lb_at_ip(data, p);
	void *inner = ip + header;
	if (data + header + ETH_HLEN + 4 * LB_TAGS > end || lb_take_hop(inner, end, v6))
		return LB_DROP(REWRITE);
	__u8 tos = v6 ? bpf_ntohs(*(__be16 *)inner) >> 4 : ((struct iphdr *)inner)->tos;
	__u32 ifindex = hop->ifindex;
	has_way = has_way || ifindex;
	if (has_way) {
		__builtin_memcpy(macs, hop->macs, 12);
	} else {
		const __be32 *old = data + header;
		macs[0] = old[0];
		macs[1] = old[1];
		macs[2] = old[2];
	}
	lb_write_ethernet(data, macs, p, outer_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP));
	__u32 spread = lb_spread(p, v6);
	if (outer_v6) {
		__u32 fill = 0xffffffffULL >> (service->len6 > 96 ? (service->len6 - 96) & 63 : 0);
		__be32 last = service->source6.word[3] | bpf_htonl(spread & fill);
		lb_write_outer_ipv6(ip, p, v6, tos, &service->source6, last, &backend->addr);
	} else {
		__u32 fill = 0xffffffffULL >> (service->len4 & 63);
		__be32 source = service->source4.word[3] | bpf_htonl(spread & fill);
		/* The stack refuses its own address as a source. From the client's it takes the packet as routed; with the
		 * backend's, where the client has none of this family, it only learns the neighbour. */
		if (!has_way)
			source = v6 ? backend->addr.word[3] : p->flow->v4.saddr;
		lb_write_outer_ipv4(ip, p, v6, tos, source, backend->addr.word[3]);
	}
	if (!has_way)
		return backend->flags & TG_BACKEND_HERE ? LB_PASS(HERE) : LB_PASS(NO_NEIGHBOUR);
	return lb_transmit(ctx, p, ifindex, p->kind == LB_ERROR ? TG_FORWARD_DSR_ERROR : TG_FORWARD_DSR);
}

#endif
