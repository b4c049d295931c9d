/* The load balancer is several programs: what one leaves to the next, and the jump to it. */
#ifndef LB_STAGES_H
#define LB_STAGES_H

#include "lb_exit.h"
#include "lb_parse.h"

/* In the order in which the loader is told the programs. */
enum lb_stage {
	LB_REST,
	LB_REST_IPV4,
	LB_REST_IPV6,
	LB_ERROR_ANSWER,
	LB_DNAT,
	LB_DNAT_BACK,
	LB_STAGES
};

/* The map outlives the agent; an update of it is one store. */
BPF_TABLE_PINNED("prog", __u32, __u32, tg_lb_programs, LB_STAGES, TG_MAPS "/tg_lb_programs");

/* A parsed packet on its way from one program to the next. What comes out of a map is unknown to the verifier: all ways that
 * lead to it become one, else it would follow each of them to the end of the program. */
struct lb_kept {
	struct lb_packet packet;
	union lb_flow flow;
	__u32 backend; /* its id, for LB_DNAT */
	__u32 why;     /* for LB_ERROR_ANSWER */
	__u32 mtu;
	__u32 v6;
};
BPF_PERCPU_ARRAY(lb_kept, struct lb_kept, 1);

static __always_inline struct lb_kept *lb_keep(struct lb_packet *p, bool v6)
{
	__u32 zero = 0;
	struct lb_kept *kept = lb_kept.lookup(&zero);
	if (!kept)
		return 0;
	if (v6)
		kept->flow.v6 = p->flow->v6;
	else
		kept->flow.v4 = p->flow->v4;
	p->flow = 0; /* a map must not hold an address of the stack */
	kept->packet = *p;
	kept->v6 = v6;
	return kept;
}

static __always_inline struct lb_kept *lb_recall(struct lb_packet *p, union lb_flow *flow)
{
	__u32 zero = 0;
	struct lb_kept *kept = lb_kept.lookup(&zero);
	if (!kept)
		return 0;
	*p = kept->packet;
	*flow = kept->flow;
	p->flow = flow;
	return kept;
}

static __always_inline int lb_leave(struct xdp_md *ctx, __u32 to)
{
	tg_lb_programs.call(ctx, to);
	return LB_DROP(NO_PROGRAM);
}

/* Have the sender told that its packet went no further. */
static __always_inline int lb_leave_error(struct xdp_md *ctx, struct lb_packet *p, bool v6, __u32 why, __u32 mtu)
{
	struct lb_kept *kept = lb_keep(p, v6);
	if (!kept)
		return LB_DROP(REWRITE);
	kept->why = why;
	kept->mtu = mtu;
	return lb_leave(ctx, LB_ERROR_ANSWER);
}

#endif
