/* What C and Python share: the keys and values of the maps that the agent fills, and the flow table's. */
#ifndef TG_ABI_H
#define TG_ABI_H

/* An address of either family; IPv4 is mapped (::ffff:a.b.c.d), so that one table serves both. */
struct tg_addr {
	__be32 word[4];
};

/* Constants of this node that may change without a reload. One element. */
struct tg_config {
	__u32 tunnel_ifindex;
	__u32 vni_base;
	__u32 mark;       /* set on packets that a program sent, so that the egress hooks let them pass */
	__u32 mark_mask;
	__u16 tunnel_port; /* host order */
	__u16 pad[3];
};

#define TG_EP_HOLD 1u /* the policies of this pod are not known yet: nothing may leave the cluster */

/* A pod of this node, by the ifindex of its link's host side. */
struct tg_endpoint {
	struct tg_addr ip4;
	struct tg_addr ip6;
	__u64 born;        /* CLOCK_MONOTONIC ns; flows older than this belong to an earlier owner of the address */
	__u32 policy_class; /* names the set of egress policies that select the pod; 0: none */
	__u8 slot;         /* picks one of a policy's gateways, 0..63 */
	__u8 flags;
	__u16 pad;
};

/* The link of a local pod, by the pod's address. */
struct tg_local {
	__u32 ifindex;
};

#define TG_RANGE_STACK 1 /* services and this node's own addresses: the kernel's stack decides */
#define TG_RANGE_PEER 2  /* pods or addresses of another node */
#define TG_RANGE_NONE 3  /* a pod range of the cluster that no node has */
#define TG_RANGE_DIRECT 4 /* outside the cluster, never masqueraded */

struct tg_range_key {
	__u32 prefixlen;
	struct tg_addr addr;
};

struct tg_range {
	struct tg_addr via; /* the peer's tunnel endpoint, or with `ifindex` the next hop of native routing */
	__u32 ifindex;      /* 0: through the tunnel */
	__u8 kind;
	__u8 pad[3];
};

/* Longest prefix within a class of pods. */
struct tg_egress_key {
	__u32 prefixlen; /* 32 + the prefix length of the mapped address */
	__u32 policy_class;
	struct tg_addr addr;
};

struct tg_egress {
	__u32 number; /* of the policy; 0: none applies here, though a shorter prefix would */
};

#define TG_SLOTS 64
#define TG_GATEWAYS 64
#define TG_SLOT_EMPTY 255

#define TG_PATH_ALLOW 1u /* without a gateway: leave as if there were no policy */

/* The gateways of a policy. A gateway with address zero is this node; `number` names what it sends with. */
struct tg_path {
	__u8 slot[TG_SLOTS];
	struct tg_addr gateway[TG_GATEWAYS];
	__u32 number[TG_GATEWAYS];
	__u32 flags;
};

/* What a gateway sends with, by the number that the tunnel carries; 0 is masquerading. A zero address: no such family. */
struct tg_source {
	struct tg_addr ip4;
	struct tg_addr ip6;
	__u32 ifindex; /* leave by this device; 0: by the routing tables */
	__u16 port_min;
	__u16 port_max;
};

#define TG_DIR_FORWARD 0 /* as the pod sends it, or would receive it from another pod */
#define TG_DIR_REVERSE 1 /* as an answer arrives from outside, before translation */

struct tg_flow_key {
	struct tg_addr src;
	struct tg_addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 dir;
	__u16 pad;
};

#define TG_FLOW_STACK 1  /* netfilter translated the other direction: this one must meet it again */
#define TG_FLOW_ANSWER 2 /* begun from outside: the pod's packets leave untranslated */
#define TG_FLOW_TUNNEL 3 /* to the gateway `addr` with policy `number` */
#define TG_FLOW_SNAT 4   /* translated here to `addr`:`port` */
#define TG_FLOW_BACK 5   /* reverse entry of TG_FLOW_SNAT: to the pod `addr`:`port` behind node `via` (zero: here) */
#define TG_FLOW_DSR 6    /* came through a balancer: answers leave as `addr`:`port`; `number` is the way's MTU, bytes */

#define TG_STATE_ANSWERED 1u
#define TG_STATE_CLOSING 2u

struct tg_flow {
	struct tg_addr addr;
	struct tg_addr via; /* SNAT: next hop */
	__u64 created;      /* CLOCK_MONOTONIC ns */
	__u64 touched;      /* CLOCK_MONOTONIC ns, exact to TG_TOUCH_NS */
	__u32 number;
	__u32 ifindex; /* SNAT: the device to leave by */
	__be16 port;
	__u8 kind;
	__u8 state; /* TG_STATE_*, kept in the reverse entry */
	__u32 idle_limit_s;
};

struct tg_frag_key {
	struct tg_addr src;
	struct tg_addr dst;
	__u32 id;
	__u32 proto;
};

struct tg_frag {
	__be16 sport;
	__be16 dport;
};

#define TG_DSR_QUOTED 8 /* backends of one address that a frontend's ICMP errors can be told apart by */

/* What a balancer sent to a backend of this node. ICMP errors name the frontend's port and not the backend's: for them each
 * backend has a row more, counted in `quoted` from 1 on, up to TG_DSR_QUOTED. */
struct tg_dsr_key {
	struct tg_addr outer; /* destination of the outer header: the backend's address */
	struct tg_addr vip;
	__be16 port; /* of the inner destination; with `quoted` of the quoted source */
	__u8 proto;
	__u8 quoted;
};

struct tg_dsr {
	struct tg_addr target; /* who listens, in the family of `vip` */
	__be16 target_port;
	__be16 vip_port;
	__u16 mtu; /* of the way from the balancer less the outer header, bytes */
	__u16 pad;
};

_Static_assert(sizeof(struct tg_config) == 24, "tg_config");
_Static_assert(sizeof(struct tg_endpoint) == 48, "tg_endpoint");
_Static_assert(sizeof(struct tg_range_key) == 20, "tg_range_key");
_Static_assert(sizeof(struct tg_range) == 24, "tg_range");
_Static_assert(sizeof(struct tg_egress_key) == 24, "tg_egress_key");
_Static_assert(sizeof(struct tg_path) == TG_SLOTS + 20 * TG_GATEWAYS + 4, "tg_path");
_Static_assert(sizeof(struct tg_source) == 40, "tg_source");
_Static_assert(sizeof(struct tg_flow_key) == 40, "tg_flow_key");
_Static_assert(sizeof(struct tg_flow) == 64, "tg_flow");
_Static_assert(sizeof(struct tg_dsr_key) == 36, "tg_dsr_key");
_Static_assert(sizeof(struct tg_dsr) == 24, "tg_dsr");

#endif
