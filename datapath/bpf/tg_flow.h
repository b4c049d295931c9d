/* The flow table: which path a connection took, so that it keeps it, and how long it is remembered. */
#ifndef TG_FLOW_H
#define TG_FLOW_H

#include "tg_parse.h"

#define TG_SECOND 1000000000ULL
#define TG_TOUCH_NS TG_SECOND /* `touched` is written at most this often */

/* Idle times, in seconds, after which a port may be taken from a flow. TCP: RFC 5382 asks for two hours and four minutes. */
#define TG_IDLE_TCP 8000
#define TG_IDLE_TCP_OPENING 60
#define TG_IDLE_TCP_CLOSING 10
#define TG_IDLE_UDP 60
#define TG_IDLE_UDP_ANSWERED 180
#define TG_IDLE_ICMP 30

/* Kernel 5.11; by number, since the headers that bcc brings may be older. */
static __u64 (*const tg_now)(void) = (void *)160; /* bpf_ktime_get_coarse_ns */

static __always_inline bool tg_is_tcp_open(const struct tg_packet *p)
{
	return p->key.proto == IPPROTO_TCP && (p->tcp_flags & (TG_TCP_SYN | TG_TCP_ACK)) == TG_TCP_SYN;
}

static __always_inline bool tg_is_tcp_close(const struct tg_packet *p)
{
	return p->key.proto == IPPROTO_TCP && (p->tcp_flags & (TG_TCP_FIN | TG_TCP_RST));
}

static __always_inline void tg_turn(struct tg_flow_key *to, const struct tg_flow_key *from, __u8 dir)
{
	to->src = from->dst;
	to->dst = from->src;
	to->sport = from->dport;
	to->dport = from->sport;
	to->proto = from->proto;
	to->dir = dir;
	to->pad = 0;
}

static __always_inline __u32 tg_idle_limit(__u8 proto, __u8 state)
{
	if (proto == IPPROTO_TCP) {
		if (state & TG_STATE_CLOSING)
			return TG_IDLE_TCP_CLOSING;
		return state & TG_STATE_ANSWERED ? TG_IDLE_TCP : TG_IDLE_TCP_OPENING;
	}
	if (proto == IPPROTO_UDP)
		return state & TG_STATE_ANSWERED ? TG_IDLE_UDP_ANSWERED : TG_IDLE_UDP;
	return TG_IDLE_ICMP;
}

static __always_inline void tg_set_state(struct tg_flow *flow, __u8 proto, __u8 state)
{
	flow->state = state;
	flow->idle_limit_s = tg_idle_limit(proto, state);
}

static __always_inline bool tg_is_idle(const struct tg_flow *flow, __u64 now)
{
	return now > flow->touched + flow->idle_limit_s * TG_SECOND;
}

/* Remember under the packet's own key, or the turned one, how this connection travels. */
static __always_inline void tg_remember(const struct tg_packet *p, bool turned, __u8 kind)
{
	struct tg_flow_key key = p->key;
	if (turned)
		tg_turn(&key, &p->key, TG_DIR_FORWARD);
	__u64 now = tg_now();
	struct tg_flow *known = tg_flow.lookup(&key);
	if (known && known->kind == kind) {
		if (now - known->touched > TG_TOUCH_NS)
			known->touched = now;
		return;
	}
	struct tg_flow flow = { .created = now, .touched = now, .kind = kind };
	tg_flow.update(&key, &flow);
}

/* Whether netfilter must see this packet, because it translated the other direction. */
static __always_inline bool tg_is_stack_flow(const struct tg_packet *p)
{
	struct tg_flow *flow = tg_flow.lookup((struct tg_flow_key *)&p->key);
	return flow && flow->kind == TG_FLOW_STACK && !tg_is_tcp_open(p);
}

#endif
