/* The maps that all programs share. They are pinned, outlive the agent, and are filled by name from Python. */
#ifndef TG_MAPS_H
#define TG_MAPS_H

#include "tg_addr.h"

BPF_TABLE_PINNED("array", __u32, struct tg_config, tg_config, 1, TG_MAPS "/tg_config");
BPF_TABLE_PINNED("hash", __u32, struct tg_endpoint, tg_endpoint, TG_MAX_PODS, TG_MAPS "/tg_endpoint");
BPF_TABLE_PINNED("hash", struct tg_addr, struct tg_local, tg_local, 2 * TG_MAX_PODS, TG_MAPS "/tg_local");
BPF_TABLE_PINNED("lpm_trie", struct tg_range_key, struct tg_range, tg_range, TG_MAX_RANGES, TG_MAPS "/tg_range",
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct tg_egress_key, struct tg_egress, tg_egress, TG_MAX_RANGES, TG_MAPS "/tg_egress",
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", __u32, struct tg_path, tg_path, TG_MAX_POLICIES, TG_MAPS "/tg_path", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", __u32, struct tg_source, tg_source, TG_MAX_POLICIES, TG_MAPS "/tg_source", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct tg_dsr_key, struct tg_dsr, tg_dsr, TG_MAX_RANGES, TG_MAPS "/tg_dsr", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lru_hash", struct tg_flow_key, struct tg_flow, tg_flow, TG_MAX_FLOWS, TG_MAPS "/tg_flow");
BPF_TABLE_PINNED("lru_hash", struct tg_frag_key, struct tg_frag, tg_frag, 4096, TG_MAPS "/tg_frag");

/* Values too large for a program's stack of 512 bytes. Programs of one CPU run one after the other. */
struct tg_scratch {
	struct tg_flow flow;
	struct tg_flow back;
};
BPF_PERCPU_ARRAY(tg_scratch, struct tg_scratch, 1);

static __always_inline struct tg_config *tg_get_config(void)
{
	__u32 zero = 0;
	return tg_config.lookup(&zero);
}

#endif
