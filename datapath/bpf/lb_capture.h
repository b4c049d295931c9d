/* What the packet recorder is told of a packet: the connection it belongs to, as between the client and the virtual address. */
#ifndef LB_CAPTURE_H
#define LB_CAPTURE_H

#include "capture.h"
#include "lb_parse.h"

/* `flow` is the packet's, save for answers of translated connections: theirs is the one that the client sees. Returns what goes on
 * to tg_capture_received(), or 0 if nobody wants the packet. */
static __always_inline struct tg_capture_seen *lb_capture_match(const struct lb_packet *p, bool v6, const union lb_flow *flow)
{
	struct tg_capture_seen *seen = tg_capture_begin();
	if (!seen)
		return 0;
	struct tg_capture_tuple *tuple = &seen->event.tuple;
	if (v6) {
		tuple->src = flow->v6.saddr;
		tuple->dst = flow->v6.daddr;
		tuple->sport = flow->v6.sport;
		tuple->dport = flow->v6.dport;
	} else {
		tg_map_ipv4(&tuple->src, flow->v4.saddr);
		tg_map_ipv4(&tuple->dst, flow->v4.daddr);
		tuple->sport = flow->v4.sport;
		tuple->dport = flow->v4.dport;
	}
	tuple->proto = p->proto;
	tuple->family = v6 ? 6 : 4;
	seen->event.tcp_flags = p->tcp_flags;
	return tg_capture_match(seen) ? seen : 0;
}

#endif
