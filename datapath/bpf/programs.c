/* The entry points, one a hook: where packets enter, and the order of the questions put to them. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

#include "tg_abi.h"
#include "tg_exit.h"
#include "lb_backend.h"

/* From a pod: tc ingress of its link's host side. */
int pod_out(struct __sk_buff *skb)
{
	struct tg_packet *p = tg_get_packet();
	__u32 ifindex = skb->ifindex;
	struct tg_config *config = tg_get_config();
	struct tg_endpoint *pod = tg_endpoint.lookup(&ifindex);
	int parsed = tg_parse(skb, p);
	if (parsed == TG_NOT_IP)
		return TG_DROP(NOT_IP);
	if (parsed == TG_MALFORMED)
		return TG_DROP(MALFORMED);
	if (tg_is_link_local(p))
		return TG_DROP(LINK_LOCAL);
	if (!config || !pod)
		return TG_DROP(UNKNOWN_POD);
	if (!tg_addr_equal(&p->key.src, p->is_ipv4 ? &pod->ip4 : &pod->ip6))
		return TG_DROP(SPOOFED);
	struct tg_flow *flow = tg_flow.lookup(&p->key);
	struct tg_quote quote = {};
	struct tg_flow *answered = tg_find_answered(skb, p, flow, &quote);
	if (answered && answered->created >= pod->born)
		return tg_answer_of_pod(skb, config, p, answered, &quote);
	if (flow && flow->kind == TG_FLOW_STACK && flow->created >= pod->born && !tg_is_tcp_open(p))
		return TG_PASS(STACK_FLOW);
	struct tg_local *neighbour = tg_local.lookup(&p->key.dst);
	if (neighbour)
		return tg_to_pod(neighbour, TG_FORWARD_LOCAL_POD);
	struct tg_range *range = tg_find_range(&p->key.dst);
	if (!range || range->kind == TG_RANGE_DIRECT)
		return tg_leave(skb, config, p, pod, flow, range != 0);
	if (range->kind == TG_RANGE_STACK)
		return TG_PASS(STACK_RANGE);
	if (range->kind == TG_RANGE_PEER)
		return tg_to_peer(skb, config, range);
	return TG_DROP(NO_POD);
}

/* From the stack to a pod: tc egress of its link's host side. Redirected packets do not come here. */
int pod_in(struct __sk_buff *skb)
{
	struct tg_packet *p = tg_get_packet();
	if (tg_parse(skb, p) != TG_PARSED)
		return TG_PASS(NOT_IP);
	struct tg_range *range = tg_find_range(&p->key.src);
	if (!range || range->kind != TG_RANGE_STACK)
		tg_remember(p, true, TG_FLOW_STACK);
	return TG_PASS(TO_POD);
}

/* From another node: tc ingress of the tunnel device. */
int tunnel_in(struct __sk_buff *skb)
{
	struct tg_packet *p = tg_get_packet();
	struct bpf_tunnel_key key = {};
	struct tg_config *config = tg_get_config();
	int parsed = tg_parse(skb, p);
	if (parsed != TG_PARSED || !config)
		return parsed == TG_NOT_IP ? TG_DROP(NOT_IP) : TG_DROP(MALFORMED);
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) && bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
		return TG_DROP(UNKNOWN_VNI);
	if (key.tunnel_id == config->vni_base) {
		struct tg_local *pod = tg_local.lookup(&p->key.dst);
		if (pod)
			return tg_to_local(p, pod);
		struct tg_range *range = tg_find_range(&p->key.dst);
		return range && range->kind == TG_RANGE_STACK ? TG_PASS(HOST) : TG_DROP(NO_POD);
	}
	if (key.tunnel_id < config->vni_base)
		return TG_DROP(UNKNOWN_VNI);
	struct tg_addr home;
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) == 0)
		tg_map_ipv4(&home, bpf_htonl(key.remote_ipv4));
	else
		__builtin_memcpy(home.word, key.remote_ipv6, 16);
	struct tg_flow *flow = tg_flow.lookup(&p->key);
	return tg_snat(skb, config, p, flow, key.tunnel_id - config->vni_base, &home);
}

/* From the stack into the tunnel: tc egress of the tunnel device. */
int tunnel_out(struct __sk_buff *skb)
{
	struct tg_packet *p = tg_get_packet();
	struct tg_config *config = tg_get_config();
	if (!config)
		return TG_DROP(MALFORMED);
	if (tg_is_marked(skb, config))
		return TG_PASS(SENT_BY_US);
	if (tg_parse(skb, p) != TG_PARSED)
		return TG_DROP(NOT_IP);
	struct tg_range *range = tg_find_range(&p->key.dst);
	if (!range || range->kind != TG_RANGE_PEER)
		return TG_DROP(NO_POD);
	if (tg_local.lookup(&p->key.src))
		tg_remember(p, true, TG_FLOW_STACK);
	struct tg_addr via = range->via;
	if (tg_set_tunnel_macs(skb) || tg_set_tunnel(skb, &via, config->vni_base))
		return TG_DROP(REWRITE);
	return TG_PASS(TO_PEER);
}

/* Whether the tunnel's device made the packet or will take it. Looked at before all else, since between nodes most are; what
 * has IP options or extension headers is none. */
static __always_inline bool tg_is_of_tunnel(struct __sk_buff *skb, const struct tg_config *config)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	struct ipv6hdr *ip6 = data + ETH_HLEN;
	struct udphdr *udp = (void *)(ip + 1);
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if ((void *)(udp + 1) > end || ip->ihl != 5 || ip->protocol != IPPROTO_UDP || (ip->frag_off & (TG_IP_MF | TG_IP_OFFSET)))
			return false;
	} else {
		udp = (void *)(ip6 + 1);
		if (skb->protocol != bpf_htons(ETH_P_IPV6) || (void *)(udp + 1) > end || ip6->nexthdr != IPPROTO_UDP)
			return false;
	}
	return udp->dest == bpf_htons(config->tunnel_port);
}

/* From outside: tc ingress of an uplink. */
int uplink_in(struct __sk_buff *skb)
{
	struct tg_packet *p = tg_get_packet();
	struct tg_config *config = tg_get_config();
	if (!config)
		return TG_PASS(HOST);
	if (tg_is_of_tunnel(skb, config))
		return TG_PASS(TUNNEL);
	struct tg_outer outer;
	tg_read_outer(skb, &outer);
	if (outer.length) {
		struct tg_quote quote = {};
		struct tg_dsr *row = tg_find_backend(skb, p, &outer, &quote);
		if (row)
			return tg_to_backend(skb, p, &outer, row, &quote);
	}
	if (tg_parse(skb, p) != TG_PARSED)
		return TG_PASS(NOT_IP);
	struct tg_local *pod = tg_local.lookup(&p->key.dst);
	if (pod) {
		bool may_begin = p->key.proto != IPPROTO_TCP || tg_is_tcp_open(p);
		if (may_begin && !tg_is_inside(tg_find_range(&p->key.src)))
			tg_remember(p, true, TG_FLOW_ANSWER);
		return tg_to_local(p, pod);
	}
	if (p->is_icmp_error)
		return tg_error_back(skb, config, p);
	struct tg_flow_key key = p->key;
	key.dir = TG_DIR_REVERSE;
	struct tg_flow *back = tg_flow.lookup(&key);
	if (back && back->kind == TG_FLOW_BACK)
		return tg_come_back(skb, config, p, back);
	return TG_PASS(HOST);
}

/* From the stack to outside: tc egress of an uplink. Pods' packets come here if netfilter translated their destination. */
int uplink_out(struct __sk_buff *skb)
{
	struct tg_packet *p = tg_get_packet();
	struct tg_config *config = tg_get_config();
	if (!config)
		return TG_PASS(HOST);
	if (tg_is_marked(skb, config)) {
		skb->mark &= ~config->mark_mask;
		return TG_PASS(SENT_BY_US);
	}
	if (tg_is_of_tunnel(skb, config))
		return TG_PASS(TUNNEL);
	if (tg_parse(skb, p) != TG_PARSED)
		return TG_PASS(NOT_IP);
	struct tg_local *local = tg_local.lookup(&p->key.src);
	struct tg_endpoint *pod = 0;
	struct tg_range *range = 0;
	struct tg_flow *flow = tg_flow.lookup(&p->key);
	struct tg_quote quote = {};
	struct tg_flow *answered = tg_find_answered(skb, p, flow, &quote);
	if (answered)
		return tg_answer(skb, p, answered, &quote, 0) ? TG_DROP(REWRITE) : TG_PASS(DSR_ANSWER);
	if (local) {
		__u32 ifindex = local->ifindex;
		pod = tg_endpoint.lookup(&ifindex);
		if (!pod)
			return TG_DROP(UNKNOWN_POD);
		tg_remember(p, true, TG_FLOW_STACK);
		range = tg_find_range(&p->key.dst);
		if (tg_is_inside(range))
			return TG_PASS(HOST);
	} else if (!(flow && flow->kind == TG_FLOW_SNAT) && !tg_is_taken(p)) {
		return TG_PASS(HOST);
	}
	/* The node masquerades its pods with its own address: where both want one tuple, the node's packet yields. */
	return tg_leave(skb, config, p, pod, flow, range != 0);
}
