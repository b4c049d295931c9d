/* The way back: answers and ICMP errors from outside, translated for the pod that asked. */
#ifndef TG_EGRESS_BACK_H
#define TG_EGRESS_BACK_H

#include "egress.h"

static __always_inline int tg_deliver_back(struct __sk_buff *skb, const struct tg_config *config,
					   const struct tg_addr *address, const struct tg_addr *home, __u32 local_reason,
					   __u32 tunnel_reason)
{
	struct tg_addr pod_address = *address;
	if (!tg_addr_is_zero(home)) {
		struct tg_addr endpoint = *home;
		return tg_to_tunnel(skb, config, &endpoint, config->vni_base, tunnel_reason);
	}
	struct tg_local *pod = tg_local.lookup(&pod_address);
	if (!pod)
		return TG_DROP(NO_POD);
	return tg_to_pod(pod, local_reason);
}

/* An answer to a translated connection: `back` is its reverse entry. */
static __always_inline int tg_come_back(struct __sk_buff *skb, const struct tg_config *config, const struct tg_packet *p,
					struct tg_flow *back)
{
	__u64 now = tg_now();
	struct tg_addr address = back->addr, home = back->via;
	if (now - back->touched > TG_TOUCH_NS)
		back->touched = now;
	__u8 state = back->state | TG_STATE_ANSWERED | (tg_is_tcp_close(p) ? TG_STATE_CLOSING : 0);
	if (state != back->state)
		tg_set_state(back, p->key.proto, state);
	if (p->ttl <= 1)
		return TG_PASS(TTL);
	bool is_own = tg_addr_equal(&address, &p->key.dst);
	if (tg_rewrite(skb, p, false, &address, back->port, is_own ? 0 : 1))
		return TG_DROP(REWRITE);
	if (is_own)
		return TG_PASS(HOST);
	if (tg_addr_is_zero(&home)) {
		/* A service whose backend is outside: netfilter translated on the way out and must on the way in. */
		struct tg_flow_key key = p->key;
		key.dst = address;
		key.dport = back->port;
		key.dir = TG_DIR_FORWARD;
		struct tg_flow *stack = tg_flow.lookup(&key);
		if (stack && stack->kind == TG_FLOW_STACK)
			return TG_PASS(STACK_FLOW);
	}
	return tg_deliver_back(skb, config, &address, &home, TG_FORWARD_BACK_LOCAL, TG_FORWARD_BACK_TUNNEL);
}

/* Whether a pod's connection has the tuple that the node's own packet would begin one with. */
static __always_inline bool tg_is_taken(const struct tg_packet *p)
{
	struct tg_flow_key back_key;
	if (!p->has_ports || (p->key.proto == IPPROTO_TCP && !tg_is_tcp_open(p)))
		return false;
	tg_turn(&back_key, &p->key, TG_DIR_REVERSE);
	struct tg_flow *back = tg_flow.lookup(&back_key);
	return back && !tg_is_idle(back, tg_now()) &&
	       !(tg_addr_equal(&back->addr, &p->key.src) && back->port == p->key.sport);
}

/* What an ICMP error quotes: our own translated packet, of which the ports are the part that must be translated. Packets that are
 * none pass on an empty one: the verifier cannot tell them apart, and before kernel 6.3 lets nobody read what was never written. */
struct tg_quote {
	struct tg_flow_key back_key; /* of the reverse entry of the quoted connection */
	__u32 ip;                    /* offset of the quoted IP header */
	__u32 l4;
	__u8 is_echo;
};

static __always_inline int tg_read_quote(struct __sk_buff *skb, const struct tg_packet *p, struct tg_quote *q)
{
	struct tg_flow_key *key = &q->back_key;
	struct tg_ports ports;
	__builtin_memset(q, 0, sizeof(*q));
	q->ip = p->l4 + 8;
	if (p->is_ipv4) {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, q->ip, &ip, sizeof(ip)) || ip.version != 4)
			return -1;
		tg_map_ipv4(&key->src, ip.daddr);
		tg_map_ipv4(&key->dst, ip.saddr);
		key->proto = ip.protocol;
		q->l4 = q->ip + ip.ihl * 4;
	} else {
		struct ipv6hdr ip;
		if (bpf_skb_load_bytes(skb, q->ip, &ip, sizeof(ip)) || ip.version != 6)
			return -1;
		tg_copy_ipv6(&key->src, &ip.daddr);
		tg_copy_ipv6(&key->dst, &ip.saddr);
		key->proto = ip.nexthdr;
		q->l4 = q->ip + sizeof(ip);
	}
	q->is_echo = key->proto == (p->is_ipv4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
	if (bpf_skb_load_bytes(skb, q->l4 + (q->is_echo ? 4 : 0), &ports, sizeof(ports)))
		return -1;
	key->dport = ports.sport;
	key->sport = q->is_echo ? 0 : ports.dport;
	key->dir = TG_DIR_REVERSE;
	return 0;
}

/* Put another address and port into the quoted packet, as its source or its destination; the error's own checksum follows. */
static __always_inline int tg_rewrite_quote(struct __sk_buff *skb, const struct tg_packet *p, const struct tg_quote *q,
					    bool source, const struct tg_addr *address, __be16 port)
{
	__u32 csum = p->l4 + 2;
	const struct tg_addr *from_address = source ? &q->back_key.dst : &q->back_key.src;
	__be16 from_port = source ? q->back_key.dport : q->back_key.sport;
	if (from_port != port) {
		__u32 at = q->l4 + (q->is_echo ? 4 : source ? 0 : 2);
		if (bpf_l4_csum_replace(skb, csum, from_port, port, 2) || bpf_skb_store_bytes(skb, at, &port, 2, 0))
			return -1;
	}
	if (p->is_ipv4) {
		__be32 from = from_address->word[3], to = address->word[3];
		/* The quoted header's checksum changes against its address, so the error's checksum stays as it is. */
		return bpf_l3_csum_replace(skb, q->ip + 10, from, to, 4) ||
		       bpf_skb_store_bytes(skb, q->ip + (source ? 12 : 16), &to, 4, 0);
	}
	struct tg_addr new = *address;
	return bpf_l4_csum_replace(skb, csum, 0, tg_sum_change(from_address, &new), 0) ||
	       bpf_skb_store_bytes(skb, q->ip + (source ? 8 : 24), new.word, sizeof(new), 0);
}

/* An ICMP error about a translated connection goes to its pod, as if nothing had been translated. */
static __always_inline int tg_error_back(struct __sk_buff *skb, const struct tg_config *config, const struct tg_packet *p)
{
	struct tg_quote quote;
	if (tg_read_quote(skb, p, &quote))
		return TG_PASS(HOST);
	struct tg_flow *back = tg_flow.lookup(&quote.back_key);
	if (!back)
		return TG_PASS(HOST);
	struct tg_addr address = back->addr, home = back->via;
	if (tg_rewrite_quote(skb, p, &quote, true, &address, back->port))
		return TG_DROP(REWRITE);
	if (tg_rewrite(skb, p, false, &address, 0, 0))
		return TG_DROP(REWRITE);
	return tg_deliver_back(skb, config, &address, &home, TG_FORWARD_ICMP_ERROR, TG_FORWARD_ICMP_ERROR);
}

#endif
