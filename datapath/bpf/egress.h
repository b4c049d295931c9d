/* Leaving the cluster: which policy, which gateway, which source address; and the way back. */
#ifndef TG_EGRESS_H
#define TG_EGRESS_H

#include "tg_flow.h"
#include "tg_send.h"

#define TG_PORT_TRIES 16

/* Where packets to `dst` go next. Returns 0, or -1 if the routing tables have no way. */
static __always_inline int tg_find_next_hop(struct __sk_buff *skb, const struct tg_packet *p, const struct tg_addr *src,
					    __u32 out_ifindex, struct tg_flow *flow)
{
	struct bpf_fib_lookup fib = {};
	__u32 flags = 0;
	fib.ifindex = skb->ifindex;
	if (out_ifindex) {
		fib.ifindex = out_ifindex;
		flags = BPF_FIB_LOOKUP_OUTPUT;
	}
	if (p->is_ipv4) {
		fib.family = AF_INET;
		fib.ipv4_src = src->word[3];
		fib.ipv4_dst = p->key.dst.word[3];
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, src->word, 16);
		__builtin_memcpy(fib.ipv6_dst, p->key.dst.word, 16);
	}
	long verdict = bpf_fib_lookup(skb, &fib, sizeof(fib), flags);
	if (verdict != BPF_FIB_LKUP_RET_SUCCESS && verdict != BPF_FIB_LKUP_RET_NO_NEIGH)
		return -1;
	flow->ifindex = fib.ifindex;
	if (p->is_ipv4)
		tg_map_ipv4(&flow->via, fib.ipv4_dst);
	else
		__builtin_memcpy(flow->via.word, fib.ipv6_dst, 16);
	return 0;
}

/* Whether a socket of the node itself would receive what arrives under the reverse key. */
static __always_inline bool tg_is_node_socket(struct __sk_buff *skb, const struct tg_flow_key *back_key)
{
	struct bpf_sock_tuple tuple = {};
	__u32 size;
	if (tg_addr_is_ipv4(&back_key->dst)) {
		tuple.ipv4.saddr = back_key->src.word[3];
		tuple.ipv4.daddr = back_key->dst.word[3];
		tuple.ipv4.sport = back_key->sport;
		tuple.ipv4.dport = back_key->dport;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, back_key->src.word, 16);
		__builtin_memcpy(tuple.ipv6.daddr, back_key->dst.word, 16);
		tuple.ipv6.sport = back_key->sport;
		tuple.ipv6.dport = back_key->dport;
		size = sizeof(tuple.ipv6);
	}
	struct bpf_sock *found;
	if (back_key->proto == IPPROTO_TCP)
		found = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (back_key->proto == IPPROTO_UDP)
		found = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!found)
		return false;
	bpf_sk_release(found);
	return true;
}

/* Take a port for the reverse entry, the wanted one if it is free. Returns it in host order, or -1. */
static __always_inline int tg_take_port(struct __sk_buff *skb, struct tg_flow_key *back_key, struct tg_flow *back,
					__u16 wanted, __u16 min, __u16 max)
{
	__u32 span = (__u32)max - min + 1;
	__u32 chance = bpf_get_prandom_u32();
	__u32 port = wanted;
	back_key->dport = bpf_htons(wanted);
	int first = wanted < min || wanted > max || tg_is_node_socket(skb, back_key);
	for (int i = first; i < TG_PORT_TRIES; i++) {
		/* From a random one on, one after the other: neighbours of a busy port are not busier than others. Without a
		 * branch, since the verifier would follow both ways through every try. */
		if (i)
			port = min + (chance + i) % span;
		back_key->dport = bpf_htons((__u16)port);
		if (!tg_flow.insert(back_key, back))
			goto taken;
		struct tg_flow *other = tg_flow.lookup(back_key);
		bool is_same = other && tg_addr_equal(&other->addr, &back->addr) & (other->port == back->port);
		if (is_same || (other && tg_is_idle(other, back->created))) {
			tg_flow.update(back_key, back);
			goto taken;
		}
	}
	return -1;
taken:
	/* Looked at once, for the same reason: whoever meets a socket of the node sends again and gets another port. */
	if (tg_is_node_socket(skb, back_key)) {
		tg_flow.delete(back_key);
		return -1;
	}
	return port;
}

/* Begin a translated connection: its forward entry is left in `scratch->flow`. `home` is the pod's node, zero if this one.
 * Returns 0 or a TG_DROP reason. */
static __always_inline int tg_begin_snat(struct __sk_buff *skb, const struct tg_packet *p, __u32 number,
					 const struct tg_addr *home, struct tg_scratch *scratch)
{
	struct tg_flow *flow = &scratch->flow, *back = &scratch->back;
	struct tg_source *source = tg_source.lookup(&number);
	if (!source)
		return TG_DROP_NO_SOURCE;
	struct tg_addr address = p->is_ipv4 ? source->ip4 : source->ip6;
	if (tg_addr_is_zero(&address))
		return TG_DROP_NO_SOURCE;
	__u64 now = tg_now();
	__builtin_memset(scratch, 0, sizeof(*scratch));
	back->addr = p->key.src;
	back->port = p->key.sport;
	back->via = *home;
	back->created = back->touched = now;
	back->number = number;
	back->kind = TG_FLOW_BACK;
	tg_set_state(back, p->key.proto, 0);
	struct tg_flow_key back_key;
	tg_turn(&back_key, &p->key, TG_DIR_REVERSE);
	back_key.dst = address;
	bool has_range = p->key.proto == IPPROTO_TCP || p->key.proto == IPPROTO_UDP;
	int port = tg_take_port(skb, &back_key, back, bpf_ntohs(p->key.sport), has_range ? source->port_min : 0,
				has_range ? source->port_max : 65535);
	if (port < 0)
		return TG_DROP_NO_PORT;
	flow->addr = address;
	flow->port = bpf_htons((__u16)port);
	flow->created = now;
	flow->touched = now;
	flow->number = number;
	flow->kind = TG_FLOW_SNAT;
	if (tg_find_next_hop(skb, p, &address, source->ifindex, flow))
		return TG_DROP_NO_ROUTE;
	tg_flow.update((struct tg_flow_key *)&p->key, flow);
	return 0;
}

/* Once a second: see that the reverse entry is still ours, and that the next hop is still right. */
static __always_inline bool tg_refresh_snat(struct __sk_buff *skb, const struct tg_packet *p, struct tg_flow *flow,
					    __u64 now)
{
	struct tg_flow_key back_key;
	tg_turn(&back_key, &p->key, TG_DIR_REVERSE);
	back_key.dst = flow->addr;
	back_key.dport = flow->port;
	struct tg_flow *back = tg_flow.lookup(&back_key);
	if (!back || !tg_addr_equal(&back->addr, &p->key.src) || back->port != p->key.sport)
		return false;
	if (tg_is_tcp_open(p))
		tg_set_state(back, IPPROTO_TCP, 0);
	else if (tg_is_idle(back, now))
		return false;
	if (tg_is_tcp_close(p))
		tg_set_state(back, IPPROTO_TCP, back->state | TG_STATE_CLOSING);
	if (now - flow->touched > TG_TOUCH_NS) {
		struct tg_source *source = tg_source.lookup(&flow->number);
		/* Without a way the old one stays: the neighbour may answer again. */
		tg_find_next_hop(skb, p, &flow->addr, source ? source->ifindex : 0, flow);
		flow->touched = now;
	}
	back->touched = now;
	return true;
}

/* Translate the packet and send it out. `flow` is what the table has under the packet's key, if anything. */
static __always_inline int tg_snat(struct __sk_buff *skb, const struct tg_config *config, const struct tg_packet *p,
				   struct tg_flow *flow, __u32 number, const struct tg_addr *home)
{
	__u32 zero = 0;
	struct tg_scratch *scratch = tg_scratch.lookup(&zero);
	if (!scratch)
		return TG_DROP(REWRITE);
	if (p->ttl <= 1)
		return TG_PASS(TTL);
	if (flow && (flow->kind != TG_FLOW_SNAT || flow->number != number))
		flow = 0;
	if (flow) {
		__u64 now = tg_now();
		bool look = now - flow->touched > TG_TOUCH_NS || tg_is_tcp_open(p) || tg_is_tcp_close(p);
		if (look && !tg_refresh_snat(skb, p, flow, now))
			flow = 0;
	}
	if (!flow) {
		if (!p->has_ports)
			return p->is_later_fragment ? TG_DROP(FRAGMENT) : TG_DROP(UNKNOWN_PROTOCOL);
		int refused = tg_begin_snat(skb, p, number, home, scratch);
		if (refused)
			return tg_exit(TC_ACT_SHOT, refused);
		flow = &scratch->flow;
	}
	struct tg_addr via = flow->via;
	__u32 ifindex = flow->ifindex;
	if (tg_rewrite(skb, p, true, &flow->addr, flow->port, 1))
		return TG_DROP(REWRITE);
	return tg_to_neighbour(skb, config, ifindex, &via, number ? TG_FORWARD_SNAT : TG_FORWARD_MASQUERADE);
}

/* The policy and gateway of a connection that begins now. Returns the gateway's number (0: no policy applies) and in
 * `gateway` where to send it (zero: translate here), or a negative TG_DROP reason. */
static __always_inline int tg_choose_path(const struct tg_packet *p, const struct tg_endpoint *pod, struct tg_addr *gateway)
{
	if (pod->flags & TG_EP_HOLD)
		return -TG_DROP_HELD;
	if (!pod->policy_class)
		return 0;
	struct tg_egress_key key = { .prefixlen = 160, .policy_class = pod->policy_class, .addr = p->key.dst };
	struct tg_egress *rule = tg_egress.lookup(&key);
	if (!rule || !rule->number)
		return 0;
	__u32 number = rule->number;
	struct tg_path *path = tg_path.lookup(&number);
	if (!path)
		return -TG_DROP_NO_GATEWAY;
	__u32 chosen = path->slot[pod->slot & (TG_SLOTS - 1)];
	if (chosen >= TG_GATEWAYS)
		return path->flags & TG_PATH_ALLOW ? 0 : -TG_DROP_NO_GATEWAY;
	*gateway = path->gateway[chosen];
	return path->number[chosen];
}

/* Let a connection through the tunnel keep its gateway, whatever becomes of the policy. */
static __always_inline void tg_remember_path(const struct tg_packet *p, __u32 number, const struct tg_addr *gateway)
{
	struct tg_flow flow = { .addr = *gateway, .number = number, .kind = TG_FLOW_TUNNEL };
	flow.created = flow.touched = tg_now();
	/* No answer passes this entry: keep it as long as an open connection. */
	tg_set_state(&flow, p->key.proto, TG_STATE_ANSWERED);
	tg_flow.update((struct tg_flow_key *)&p->key, &flow);
}

/* A packet to a destination outside the cluster, from a pod or (without one) from the node itself. `flow` is what the table
 * has under the packet's key; `direct` means that without a policy it leaves untranslated. */
static __always_inline int tg_leave(struct __sk_buff *skb, const struct tg_config *config, const struct tg_packet *p,
				    const struct tg_endpoint *pod, struct tg_flow *flow, bool direct)
{
	struct tg_addr gateway = {}, here = {};
	int number = -1;
	__u64 now = tg_now();
	if (!pod)
		number = 0;
	else if (flow && (flow->created < pod->born || tg_is_tcp_open(p)))
		number = -1; /* an earlier owner of the address, or a new connection: decide anew */
	else if (flow && flow->kind == TG_FLOW_ANSWER) {
		tg_mark(skb, config);
		return TG_PASS(ANSWER);
	} else if (flow && flow->kind == TG_FLOW_SNAT) {
		number = flow->number;
	} else if (flow && flow->kind == TG_FLOW_TUNNEL && !tg_is_idle(flow, now)) {
		number = flow->number;
		gateway = flow->addr;
		if (now - flow->touched > TG_TOUCH_NS)
			flow->touched = now;
	}
	if (number < 0) {
		number = tg_choose_path(p, pod, &gateway);
		if (number < 0)
			return tg_exit(TC_ACT_SHOT, -number);
		if (!number && direct) {
			tg_mark(skb, config);
			return TG_PASS(DIRECT);
		}
		if (!tg_addr_is_zero(&gateway) && p->has_ports)
			tg_remember_path(p, number, &gateway);
	}
	if (!tg_addr_is_zero(&gateway))
		return tg_to_tunnel(skb, config, &gateway, config->vni_base + number, TG_FORWARD_GATEWAY);
	return tg_snat(skb, config, p, flow, number, &here);
}

#endif
