/* Inside the cluster: where a destination is, and what the stack hands over. */
#ifndef TG_ROUTING_H
#define TG_ROUTING_H

#include "tg_flow.h"
#include "tg_send.h"

static __always_inline struct tg_range *tg_find_range(const struct tg_addr *address)
{
	struct tg_range_key key = { .prefixlen = 128, .addr = *address };
	return tg_range.lookup(&key);
}

static __always_inline bool tg_is_inside(const struct tg_range *range)
{
	return range && range->kind != TG_RANGE_DIRECT;
}

/* Multicast, broadcast and link-local destinations: nobody is there. */
static __always_inline bool tg_is_link_local(const struct tg_packet *p)
{
	__be32 last = p->key.dst.word[3], first = p->key.dst.word[0];
	if (p->is_ipv4)
		return (last & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || last == 0xffffffff ||
		       (last & bpf_htonl(0xffffff00)) == bpf_htonl(0xa9fe0100);
	return (first & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000) ||
	       (first & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* To another node's pod, or to another node. */
static __always_inline int tg_to_peer(struct __sk_buff *skb, const struct tg_config *config, const struct tg_range *range)
{
	struct tg_addr via = range->via;
	if (range->ifindex)
		return tg_to_neighbour(skb, config, range->ifindex, &via, TG_FORWARD_NATIVE);
	return tg_to_tunnel(skb, config, &via, config->vni_base, TG_FORWARD_TUNNEL);
}

/* A packet from elsewhere in the cluster, for a pod of this node. */
static __always_inline int tg_to_local(const struct tg_packet *p, const struct tg_local *pod)
{
	if (tg_is_stack_flow(p))
		return TG_PASS(STACK_FLOW);
	return tg_to_pod(pod, TG_FORWARD_LOCAL_POD);
}

#endif
