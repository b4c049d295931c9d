/* What C and Python share about load balancing: keys and values. */
#ifndef LB_ABI_H
#define LB_ABI_H

#include "tg_abi.h"

/* A frontend. Port 0 and protocol 0: the address itself, for ICMP and for what no frontend takes. */
struct tg_vip4_key {
	__be32 addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct tg_vip6_key {
	struct tg_addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

#define TG_VIP_PASS 1u /* of an address: what no frontend takes goes to the stack instead of being dropped */

struct tg_vip {
	__u32 service;
	__u32 flags;
};

#define TG_SERVICE_DNAT 1u /* else DSR */
#define TG_SERVICE_RANDOM 2u
#define TG_SERVICE_AFFINITY 4u
#define TG_SERVICE_RANGES 8u      /* only clients of tg_lb_ranges */
#define TG_SERVICE_INNER_PORT 16u /* the inner destination port becomes the backend's */
#define TG_SERVICE_STATELESS 32u  /* the flow table is not used */

struct tg_service {
	__u32 offset; /* of its table in tg_slots: even, and not 0, where no table is. It and the size are read as one word */
	__u32 size;   /* slots */
	__u32 before_offset; /* the same of the table before */
	__u32 before_size;
	__u64 before_until; /* CLOCK_MONOTONIC ns until which packets without a flow use the table before */
	__u64 digest;       /* of the table; not read here */
	__u32 seed;
	__u32 before_seed; /* goes with the table before */
	__u32 flags;
	__u32 affinity_s; /* in units of 2^30 ns, as `seen_s` */
	struct tg_addr source4; /* outer source by family; host bits beyond len4, len6 are filled from the flow. Zero: none */
	struct tg_addr source6;
	__u8 len4; /* 0..32 */
	__u8 len6; /* 0..128 */
	__u8 pad[6];
};

/* Two neighbouring slots of the tables of all services, which lie in one array, each in a range of its own. The kernel rounds array elements up to eight bytes: so mapped memory is a plain array of
 * __u32. */
struct tg_slots {
	__u32 backend[2];
};

#define TG_BACKEND_HERE 1u /* an address of this machine or a pod of it: the tc programs take the outer header off again */

struct tg_backend {
	struct tg_addr addr;
	__be16 port;
	__u8 flags;
	__u8 pad;
	__u32 born; /* differs each time the id is given anew; 0: there is no such backend */
};

/* Begins with the key of its frontend, so that one key serves both searches. */
struct tg_lb_flow4_key {
	__be32 daddr;
	__be16 dport;
	__u8 proto;
	__u8 pad;
	__be32 saddr;
	__be16 sport;
	__u16 pad_end;
};

struct tg_lb_flow6_key {
	struct tg_addr daddr;
	__be16 dport;
	__u8 proto;
	__u8 pad;
	__be16 sport;
	__u16 pad_middle;
	struct tg_addr saddr;
};

struct tg_lb_flow {
	__u32 backend;
	__u32 born;
	__u32 seen_s; /* CLOCK_MONOTONIC in units of 2^30 ns; TCP: when the flow began */
	__be16 nat_port; /* DNAT: what stands for the client's port */
	__u16 pad;
};

struct tg_lb_affinity_key {
	__u32 service;
	struct tg_addr addr;
};

struct tg_lb_affinity {
	__u32 backend;
	__u32 born;
	__u32 seen_s;
};

struct tg_lb_ranges_key {
	__u32 prefixlen; /* 32 + the prefix length of the mapped address */
	__u32 service;
	struct tg_addr addr;
};

struct tg_lb_range {
	__u32 allow;
};

/* A translated connection, by what a backend's packets look like (struct tg_flow_key, direction 0). */
struct tg_nat {
	struct tg_addr client;
	struct tg_addr vip;
	__be16 client_port;
	__be16 vip_port;
	__u32 backend;
};

struct tg_lb_config {
	struct tg_addr nat4; /* the source of translated packets; zero: none of this family */
	struct tg_addr nat6;
	__u16 port_min; /* host order */
	__u16 port_max;
	__u32 icmp_rate; /* ICMP errors a second and CPU that may be sent */
};

/* What this CPU knows about a backend: the way to it, and what was sent. */
struct tg_hop {
	__u64 packets;
	__u64 bytes; /* of IP packets as received */
	__u64 flows; /* that the flow table took up */
	__u32 jiffy; /* `until_ns` was looked at in this tick of the kernel's clock, of which the lower half is here */
	__u32 seen_s; /* what the clock said then, as `seen_s` of a flow */
	__u64 until_ns; /* CLOCK_MONOTONIC */
	__u8 macs[12]; /* destination, source */
	__u32 born;
	__u32 ifindex;
	__u32 mtu;
};

struct tg_lb_count {
	__u64 packets;
	__u64 bytes; /* of IP packets as received */
	__u64 flows;
};

_Static_assert(sizeof(struct tg_service) == 88, "tg_service");
_Static_assert(sizeof(struct tg_backend) == 24, "tg_backend");
_Static_assert(sizeof(struct tg_lb_flow4_key) == 16, "tg_lb_flow4_key");
_Static_assert(sizeof(struct tg_lb_flow6_key) == 40, "tg_lb_flow6_key");
_Static_assert(sizeof(struct tg_lb_config) == 40, "tg_lb_config");
_Static_assert(sizeof(struct tg_hop) == 64, "tg_hop");

#endif
