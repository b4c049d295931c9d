/* The only way out of a program: every verdict is counted under its reason. */
#ifndef TG_EXIT_H
#define TG_EXIT_H

/* The names reach metrics in lower case without their first two words: TG_DROP_NO_GATEWAY is drops{reason="no_gateway"}.
 * The agent reads them from here, in this order. */
enum tg_reason {
	TG_PASS_NOT_IP,
	TG_PASS_HOST,           /* of the node itself */
	TG_PASS_SENT_BY_US,     /* came by a redirect of another of our programs */
	TG_PASS_TUNNEL,         /* encapsulated packets on their way through the uplink */
	TG_PASS_STACK_RANGE,    /* to a service or this node */
	TG_PASS_STACK_FLOW,     /* netfilter translated the other direction */
	TG_PASS_ANSWER,         /* of a connection begun from outside */
	TG_PASS_DIRECT,         /* to a range that is never masqueraded */
	TG_PASS_TTL,            /* the stack answers with "time exceeded" */
	TG_PASS_TO_POD,         /* from the stack to a pod */
	TG_PASS_TO_PEER,        /* from the stack to another node's pod, through the tunnel */
	TG_PASS_DSR,            /* from a balancer, decapsulated, to a listener of the node itself */
	TG_PASS_DSR_ANSWER,     /* the listener's answer, now from the virtual address */
	TG_FORWARD_LOCAL_POD,
	TG_FORWARD_TUNNEL,      /* to another node's pod */
	TG_FORWARD_NATIVE,
	TG_FORWARD_GATEWAY,     /* to the egress gateway of a policy */
	TG_FORWARD_SNAT,        /* left with an egress address */
	TG_FORWARD_MASQUERADE,  /* left with the node's address */
	TG_FORWARD_BACK_LOCAL,  /* an answer, translated back, to a pod here */
	TG_FORWARD_BACK_TUNNEL, /* the same to a pod behind another node */
	TG_FORWARD_ICMP_ERROR,  /* an ICMP error, translated back */
	TG_FORWARD_DSR,         /* from a balancer, decapsulated, to a pod */
	TG_FORWARD_DSR_ANSWER,  /* a pod's answer, now from the virtual address */
	TG_DROP_MALFORMED,
	TG_DROP_NOT_IP,
	TG_DROP_UNKNOWN_POD,    /* a link that the agent has not programmed */
	TG_DROP_SPOOFED,        /* a source address that is not the pod's */
	TG_DROP_LINK_LOCAL,     /* multicast and link-local: neighbours are fixed, nobody listens */
	TG_DROP_HELD,           /* the pod's policies are not known yet */
	TG_DROP_NO_GATEWAY,
	TG_DROP_NO_SOURCE,      /* the gateway has no address of this family for the policy */
	TG_DROP_NO_PORT,        /* every port that was tried is in use */
	TG_DROP_NO_ROUTE,
	TG_DROP_NO_POD,         /* to an address of a pod range that no pod has */
	TG_DROP_UNKNOWN_VNI,
	TG_DROP_UNKNOWN_PROTOCOL, /* neither TCP, UDP nor ICMP echo: cannot be translated */
	TG_DROP_FRAGMENT,       /* a later fragment whose first one was not seen */
	TG_DROP_DSR_TAKEN,      /* the client has this connection through another frontend of the same listener */
	TG_DROP_ECN,            /* congestion was marked on a connection that cannot be told (RFC 6040) */
	TG_DROP_REWRITE,        /* the kernel refused to change the packet */
	TG_REASONS
};

BPF_TABLE_PINNED("percpu_array", __u32, __u64, tg_counter, TG_REASONS, TG_MAPS "/tg_counter");

static __always_inline int tg_exit(int verdict, __u32 reason)
{
	__u64 *count = tg_counter.lookup(&reason);
	if (count)
		*count += 1;
	return verdict;
}

/* UNSPEC, not OK: programs of others on the same hook have their turn after ours. */
#define TG_PASS(reason) tg_exit(TC_ACT_UNSPEC, TG_PASS_##reason)
#define TG_DROP(reason) tg_exit(TC_ACT_SHOT, TG_DROP_##reason)

#endif
