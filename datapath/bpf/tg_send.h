/* The ways on: to a local pod, through the tunnel, to a neighbour. Each ends the program. */
#ifndef TG_SEND_H
#define TG_SEND_H

#include "tg_exit.h"
#include "tg_rewrite.h"

/* By number: the declaration that bcc brings lacks an argument. Kernel 5.10. */
static long (*const tg_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *hop, int size, __u64 flags) = (void *)152;

static __always_inline void tg_mark(struct __sk_buff *skb, const struct tg_config *config)
{
	skb->mark = (skb->mark & ~config->mark_mask) | config->mark;
}

/* True once for a packet that one of our programs has sent to this device. */
static __always_inline bool tg_is_marked(struct __sk_buff *skb, const struct tg_config *config)
{
	return (skb->mark & config->mark_mask) == config->mark;
}

/* The pod's stack takes the packet at once: no second queue, no walk through the node's stack. */
static __always_inline int tg_to_pod(const struct tg_local *pod, __u32 reason)
{
	return tg_exit(bpf_redirect_peer(pod->ifindex, 0), reason);
}

static __always_inline int tg_to_tunnel(struct __sk_buff *skb, const struct tg_config *config,
					const struct tg_addr *endpoint, __u32 vni, __u32 reason)
{
	if (tg_set_tunnel_macs(skb) || tg_set_tunnel(skb, endpoint, vni))
		return TG_DROP(REWRITE);
	tg_mark(skb, config);
	return tg_exit(bpf_redirect(config->tunnel_ifindex, 0), reason);
}

static __always_inline int tg_to_neighbour(struct __sk_buff *skb, const struct tg_config *config, __u32 ifindex,
					   const struct tg_addr *next_hop, __u32 reason)
{
	struct bpf_redir_neigh hop = {};
	if (tg_addr_is_ipv4(next_hop)) {
		hop.nh_family = AF_INET;
		hop.ipv4_nh = next_hop->word[3];
	} else {
		hop.nh_family = AF_INET6;
		__builtin_memcpy(hop.ipv6_nh, next_hop->word, 16);
	}
	tg_mark(skb, config);
	return tg_exit(tg_redirect_neigh(ifindex, &hop, sizeof(hop), 0), reason);
}

#endif
