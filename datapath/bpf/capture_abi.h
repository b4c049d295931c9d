/* What C and Python share about captures: the filters as masks and rules, and the event that precedes each captured packet. */
#ifndef CAPTURE_ABI_H
#define CAPTURE_ABI_H

#include "tg_abi.h"

#ifndef TG_CAPTURE_MASKS
#define TG_CAPTURE_MASKS 32 /* shapes of filters (which fields, which prefix lengths) at a time */
#endif
#ifndef TG_CAPTURE_RULES
#define TG_CAPTURE_RULES 1024
#endif

#define TG_TAP_RECEIVED 0
#define TG_TAP_SENT 1
#define TG_TAP_NONE 2 /* no bytes follow: the event only tells what became of the packet */

/* One element. `masks` 0: nothing is captured, and no packet pays more than the look at this word. */
struct tg_capture_config {
	__u32 masks;      /* slots of tg_capture_mask to look at */
	__u32 generation; /* differs after each change, so that what an earlier packet left behind is not taken for this one's */
};

/* What of a packet a filter compares. The same struct is the packet's tuple, and a rule's key after masking. */
struct tg_capture_tuple {
	struct tg_addr src;
	struct tg_addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 family; /* 4 or 6: ::/0 shall not match the mapped addresses of IPv4 */
	__u8 slot;   /* of the mask; in a mask 1 if the slot is in use */
	__u8 pad;
};

#define TG_CAPTURE_BLOOM 4 /* words of 64 bits */

/* A shape of filters, and a Bloom filter (one hash) of its rules' keys, which spares most packets the look-up. */
struct tg_capture_mask {
	struct tg_capture_tuple tuple;
	__u64 bloom[TG_CAPTURE_BLOOM];
};

struct tg_capture_rule {
	__u64 captures; /* a bit for each that wants the packet */
	__u32 snaplen[2]; /* bytes kept, by tap; 0: this tap is not wanted */
};

/* What precedes a captured packet's bytes in the perf ring. Each packet has one event with `verdict` and `reason`, its last. */
struct tg_capture_event {
	__u64 id;       /* the same at both taps: CPU in the upper 16 bits, a count in the others */
	__u64 time;     /* CLOCK_MONOTONIC ns */
	__u64 captures;
	struct tg_capture_tuple tuple; /* what the filters were compared with */
	__u32 length;   /* of the whole frame, bytes */
	__u32 kept;     /* bytes of it that follow */
	__u32 ifindex;  /* by which it came */
	__u32 service;  /* 0: no frontend takes it */
	__u32 backend;  /* 0: none was chosen */
	__u16 reason;   /* a tg_reason */
	__u8 verdict;   /* an xdp_action */
	__u8 tap;
	__u8 tcp_flags;
	__u8 pad[7];
};

/* Kept from one tap to the next, which run on one CPU with no other packet between. */
struct tg_capture_seen {
	struct tg_capture_event event;
	struct tg_capture_tuple key; /* of the rule that is looked for */
	__u32 generation;
	__u32 snaplen[2];
	__u32 is_received; /* the first tap was passed, and the second one was not yet */
};

struct tg_capture_count {
	__u64 matched; /* packets, at the first tap */
	__u64 refused; /* events that the ring had no room for; the packets went on */
};

_Static_assert(sizeof(struct tg_capture_tuple) == 40, "tg_capture_tuple");
_Static_assert(sizeof(struct tg_capture_mask) == 72, "tg_capture_mask");
_Static_assert(sizeof(struct tg_capture_event) == 96, "tg_capture_event");

#endif
