/* The only way out of the load balancer: every verdict is counted under its reason. */
#ifndef LB_EXIT_H
#define LB_EXIT_H

/* The names reach metrics in lower case, as those of tg_exit.h do. */
enum tg_reason {
	TG_PASS_NOT_IP,
	TG_PASS_OTHER,         /* not to a virtual address */
	TG_PASS_NO_FRONTEND,   /* to a virtual address that leaves the rest to the stack */
	TG_PASS_NO_NEIGHBOUR,  /* encapsulated, but the stack must find the next hop's link address first */
	TG_PASS_HERE,          /* encapsulated, for a backend on this machine */
	TG_FORWARD_DSR,
	TG_FORWARD_DSR_ERROR,  /* an ICMP error about a flow, to the flow's backend */
	TG_FORWARD_DNAT,
	TG_FORWARD_DNAT_BACK,  /* from a backend, translated back, to the client */
	TG_FORWARD_ECHO,       /* a ping, answered */
	TG_FORWARD_TOO_BIG,    /* the sender was told the right packet size */
	TG_FORWARD_EXPIRED,    /* the sender was told "time exceeded" */
	TG_DROP_MALFORMED,
	TG_DROP_NO_FRONTEND,   /* to a virtual address, but no frontend takes this port or protocol */
	TG_DROP_SOURCE_RANGE,  /* the service is not for this client */
	TG_DROP_NO_BACKEND,
	TG_DROP_NO_SOURCE,     /* this machine has no outer source of the backend's family */
	TG_DROP_NO_ROUTE,
	TG_DROP_EXPIRED,       /* on its way back to the client */
	TG_DROP_DNAT_ERROR,    /* an ICMP error about a translated flow */
	TG_DROP_NO_FORWARDING, /* the device's sysctl `forwarding` is off, so that the kernel finds no routes for us */
	TG_DROP_FRAGMENT,      /* a later fragment whose first one was not seen */
	TG_DROP_BAD_SOURCE,    /* would have to answer to multicast, loopback or no address */
	TG_DROP_ICMP_RATE,
	TG_DROP_NO_PORT,       /* every port that was tried is in use */
	TG_DROP_MIXED_FAMILIES, /* DNAT between IPv4 and IPv6 */
	TG_DROP_REWRITE,       /* the kernel refused to change the packet */
	TG_DROP_NO_PROGRAM,    /* the program for what is not plain is not in its place */
	TG_REASONS
};

BPF_TABLE_PINNED("percpu_array", __u32, __u64, tg_lb_counters, TG_REASONS, TG_MAPS "/tg_lb_counters");

/* Both in one number, since the recorder, at the end of the program, tells them. */
#define LB_LEFT(verdict, reason) ((verdict) | (int)(reason) << 8)
#define LB_VERDICT(left) ((left) & 0xff)
#define LB_REASON(left) ((__u32)(left) >> 8)

static __always_inline int lb_exit(int verdict, __u32 reason)
{
	__u64 *count = tg_lb_counters.lookup(&reason);
	if (count)
		*count += 1;
	return LB_LEFT(verdict, reason);
}

#define LB_PASS(reason) lb_exit(XDP_PASS, TG_PASS_##reason)
#define LB_DROP(reason) lb_exit(XDP_DROP, TG_DROP_##reason)

#endif
