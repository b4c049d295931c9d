/* Translating addresses and ports: the inner port of DSR, and full NAT to a backend and back (DNAT mode). */
#ifndef LB_NAT_H
#define LB_NAT_H

#include "lb_answer.h"
#include "lb_capture.h"

#define LB_PORT_TRIES 16

BPF_TABLE_PINNED("lru_hash", struct tg_flow_key, struct tg_nat, tg_lb_nat, TG_LB_MAX_FLOWS, TG_MAPS "/tg_lb_nat");

/* The sum over what changes of a flow's two addresses and ports; nothing else of the two keys differs. */
static __always_inline __u32 lb_sum_change(const union lb_flow *from, const union lb_flow *to, bool v6, __u16 check)
{
	__u32 size = v6 ? sizeof(from->v6) : sizeof(from->v4);
	return tg_csum_diff(from, size, to, size, (__u16)~check);
}

/* Give the packet the addresses and ports of `to`. Returns -1 for what cannot be. */
static __always_inline int lb_translate(struct xdp_md *ctx, const struct lb_packet *p, bool v6, const union lb_flow *to)
{
	void *end = (void *)(long)ctx->data_end;
	void *at = lb_at_ip((void *)(long)ctx->data, p);
	void *l4 = at + ((p->l4 - p->l3) & 1023);
	bool is_udp = p->proto == IPPROTO_UDP;
	if (!p->is_later_fragment) {
		__be16 *check;
		if (is_udp) {
			struct udphdr *udp = l4;
			if ((void *)(udp + 1) > end)
				return -1;
			check = &udp->check;
		} else {
			struct tcphdr *tcp = l4;
			if ((void *)(tcp + 1) > end)
				return -1;
			check = &tcp->check;
		}
		barrier_var(check); /* else the choice is made again, after the verifier forgot which it was */
		/* A UDP checksum of zero says that there is none, and so a sum of zero is written as its twin. */
		if (!is_udp || *check) {
			__u16 sum = lb_fold64(lb_sum_change(p->flow, to, v6, *check));
			*check = is_udp && !sum ? 0xffff : sum;
		}
		*(__u32 *)l4 = v6 ? lb_word(to->v6.sport, to->v6.dport) : lb_word(to->v4.sport, to->v4.dport);
	}
	if (v6) {
		struct ipv6hdr *ip = at;
		if ((void *)(ip + 1) > end)
			return -1;
		__builtin_memcpy(&ip->saddr, to->v6.saddr.word, 16);
		__builtin_memcpy(&ip->daddr, to->v6.daddr.word, 16);
		return 0;
	}
	struct iphdr *ip = at;
	if ((void *)(ip + 1) > end)
		return -1;
	ip->check = tg_csum_update(tg_csum_update(ip->check, ip->saddr, to->v4.saddr), ip->daddr, to->v4.daddr);
	ip->saddr = to->v4.saddr;
	ip->daddr = to->v4.daddr;
	return 0;
}

static __always_inline void lb_copy_flow(union lb_flow *to, const struct lb_packet *p, bool v6)
{
	if (v6)
		to->v6 = p->flow->v6;
	else
		to->v4 = p->flow->v4;
}

static __always_inline int lb_set_inner_port(struct xdp_md *ctx, const struct lb_packet *p, bool v6, __be16 port)
{
	union lb_flow to;
	lb_copy_flow(&to, p, v6);
	if (v6)
		to.v6.dport = port;
	else
		to.v4.dport = port;
	return lb_translate(ctx, p, v6, &to);
}

static __always_inline void lb_set_ends(union lb_flow *to, bool v6, const struct tg_addr *from, const struct tg_addr *dst, __be16 sport,
					__be16 dport)
{
	if (v6) {
		to->v6.saddr = *from;
		to->v6.daddr = *dst;
		to->v6.sport = sport;
		to->v6.dport = dport;
	} else {
		to->v4.saddr = from->word[3];
		to->v4.daddr = dst->word[3];
		to->v4.sport = sport;
		to->v4.dport = dport;
	}
}

static __always_inline void lb_copy_source(struct tg_addr *to, const struct lb_packet *p, bool v6)
{
	if (v6)
		*to = p->flow->v6.saddr;
	else
		tg_map_ipv4(to, p->flow->v4.saddr);
}

static __always_inline void lb_copy_destination(struct tg_addr *to, const struct lb_packet *p, bool v6)
{
	if (v6)
		*to = p->flow->v6.daddr;
	else
		tg_map_ipv4(to, p->flow->v4.daddr);
}

/* In one comparison: of several the verifier would follow each outcome, again in every try. */
static __always_inline bool lb_is_same_client(const struct tg_nat *a, const struct tg_nat *b)
{
	__u32 differs = (__u32)(a->client_port ^ b->client_port) | (__u32)(a->vip_port ^ b->vip_port);
	for (int i = 0; i < 4; i++)
		differs |= (a->client.word[i] ^ b->client.word[i]) | (a->vip.word[i] ^ b->vip.word[i]);
	barrier_var(differs);
	return !differs;
}

/* Find the port under which this client's answers come back: the one it has (`wanted`), or another that is free. The search
 * begins at a hash, so that a SYN sent again finds what the first one took. `key` is that of the answers; its port is filled in.
 * Returns 0 or a TG_DROP reason. */
static __always_inline __u32 lb_take_port(const struct tg_lb_config *config, struct tg_flow_key *key, struct tg_nat *nat,
					  __be16 wanted, __u32 hash)
{
	__u32 min = config->port_min, span = (__u32)config->port_max - min + 1;
	if (span > 65536 || !min)
		return TG_DROP_NO_PORT;
	for (int i = 0; i < LB_PORT_TRIES; i++) {
		key->dport = i || !wanted ? bpf_htons((__u16)(min + (hash % span + i) % span)) : wanted;
		struct tg_nat *there = tg_lb_nat.lookup(key);
		if (there && lb_is_same_client(there, nat))
			return 0;
		if (!there && !tg_lb_nat.insert(key, nat))
			return 0;
	}
	return TG_DROP_NO_PORT;
}

/* Send the packet to the backend as if this machine had asked. */
static __always_inline int lb_send_translated(struct xdp_md *ctx, struct lb_packet *p, bool v6, const struct tg_backend *backend,
					      __u32 id, const struct tg_hop *hop)
{
	__u32 zero = 0;
	struct tg_lb_config *config = tg_lb_config.lookup(&zero);
	struct tg_lb_flow *flow = lb_find_flow(p, v6);
	if (!config || !flow)
		return LB_DROP(NO_PORT);
	if (v6 == tg_addr_is_ipv4(&backend->addr))
		return LB_DROP(MIXED_FAMILIES);
	struct tg_flow_key key = { .src = backend->addr, .dst = v6 ? config->nat6 : config->nat4, .proto = p->proto };
	if (!(v6 ? key.dst.word[0] : key.dst.word[3]))
		return LB_DROP(NO_SOURCE);
	struct tg_nat nat = { .backend = id };
	lb_copy_source(&nat.client, p, v6);
	lb_copy_destination(&nat.vip, p, v6);
	__u32 ports = p->ports;
	nat.client_port = lb_first(ports);
	nat.vip_port = lb_second(ports);
	key.sport = backend->port ? backend->port : nat.vip_port;
	__u32 refused = lb_take_port(config, &key, &nat, flow->nat_port, lb_hash(p, v6, 0, false));
	if (refused)
		return lb_exit(XDP_DROP, refused);
	flow->nat_port = key.dport;
	union lb_flow to;
	lb_copy_flow(&to, p, v6);
	lb_set_ends(&to, v6, &key.dst, &key.src, key.dport, key.sport);
	if (lb_take_hop(lb_at_ip((void *)(long)ctx->data, p), (void *)(long)ctx->data_end, v6) || lb_translate(ctx, p, v6, &to))
		return LB_DROP(MALFORMED);
	if (!hop->ifindex)
		return LB_PASS(NO_NEIGHBOUR);
	void *data = (void *)(long)ctx->data;
	if (data + ETH_HLEN + 4 * LB_TAGS > (void *)(long)ctx->data_end)
		return LB_DROP(MALFORMED);
	__be32 macs[3];
	__builtin_memcpy(macs, hop->macs, 12);
	lb_write_ethernet(data, macs, p, v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP));
	return lb_transmit(ctx, p, hop->ifindex, TG_FORWARD_DNAT);
}

/* An answer from a backend goes to the client as from the virtual address. What is no answer is the stack's. */
static __always_inline int lb_send_back(struct xdp_md *ctx, struct lb_packet *p, bool v6)
{
	struct tg_flow_key key = { .proto = p->proto };
	__u32 ports = p->ports;
	lb_copy_source(&key.src, p, v6);
	lb_copy_destination(&key.dst, p, v6);
	key.sport = lb_first(ports);
	key.dport = lb_second(ports);
	struct tg_nat *nat = tg_lb_nat.lookup(&key);
	if (!nat)
		return LB_PASS(OTHER);
	struct tg_addr client = nat->client;
	union lb_flow to;
	lb_copy_flow(&to, p, v6);
	lb_set_ends(&to, v6, &nat->vip, &client, nat->vip_port, nat->client_port);
	if (tg_capture_on()) {
		struct tg_capture_seen *seen = lb_capture_match(p, v6, &to);
		if (seen) {
			seen->event.service = 0;
			seen->event.backend = nat->backend;
			tg_capture_received(ctx, seen);
		}
	}
	if (p->ttl <= 1)
		return LB_DROP(EXPIRED);
	struct tg_hop hop = {};
	__u32 refused = lb_find_way(ctx, &client, &hop);
	if (refused)
		return lb_exit(XDP_DROP, refused);
	if (p->length > hop.mtu)
		return lb_leave_error(ctx, p, v6, LB_TOO_BIG, hop.mtu);
	if (lb_take_hop(lb_at_ip((void *)(long)ctx->data, p), (void *)(long)ctx->data_end, v6) || lb_translate(ctx, p, v6, &to))
		return LB_DROP(MALFORMED);
	if (!hop.ifindex)
		return LB_PASS(NO_NEIGHBOUR);
	void *data = (void *)(long)ctx->data;
	if (data + ETH_HLEN + 4 * LB_TAGS > (void *)(long)ctx->data_end)
		return LB_DROP(MALFORMED);
	__be32 macs[3];
	__builtin_memcpy(macs, hop.macs, 12);
	lb_write_ethernet(data, macs, p, v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP));
	return lb_transmit(ctx, p, hop.ifindex, TG_FORWARD_DNAT_BACK);
}

/* Whether the packet is to the address that translated packets are sent from. */
static __always_inline bool lb_may_be_answer(const struct lb_packet *p, bool v6)
{
	__u32 zero = 0;
	struct tg_lb_config *config = tg_lb_config.lookup(&zero);
	if (!config)
		return false;
	return v6 ? tg_addr_equal(&config->nat6, &p->flow->v6.daddr) : config->nat4.word[3] == p->flow->v4.daddr;
}

#endif
