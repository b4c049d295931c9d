/* The load balancer's maps. They are pinned and outlive the agent. */
#ifndef LB_MAPS_H
#define LB_MAPS_H

#include "tg_addr.h"
#include "lb_abi.h"

BPF_TABLE_PINNED("array", __u32, struct tg_lb_config, tg_lb_config, 1, TG_MAPS "/tg_lb_config");
BPF_TABLE_PINNED("hash", struct tg_vip4_key, struct tg_vip, tg_vip4, TG_LB_MAX_VIPS, TG_MAPS "/tg_vip4");
BPF_TABLE_PINNED("hash", struct tg_vip6_key, struct tg_vip, tg_vip6, TG_LB_MAX_VIPS, TG_MAPS "/tg_vip6");
BPF_TABLE_PINNED("array", __u32, struct tg_service, tg_service, TG_LB_MAX_SERVICES, TG_MAPS "/tg_service");
BPF_TABLE_PINNED("array", __u32, struct tg_backend, tg_backend, TG_LB_MAX_BACKENDS, TG_MAPS "/tg_backend");

BPF_TABLE_PINNED("array", __u32, struct tg_slots, tg_slots, (TG_LB_MAX_SLOTS) / 2, TG_MAPS "/tg_slots", BPF_F_MMAPABLE);

BPF_TABLE_PINNED("lru_hash", struct tg_lb_flow4_key, struct tg_lb_flow, tg_lb_flow4, TG_LB_MAX_FLOWS,
		 TG_MAPS "/tg_lb_flow4");
BPF_TABLE_PINNED("lru_hash", struct tg_lb_flow6_key, struct tg_lb_flow, tg_lb_flow6, TG_LB_MAX_FLOWS,
		 TG_MAPS "/tg_lb_flow6");
BPF_TABLE_PINNED("lru_hash", struct tg_lb_affinity_key, struct tg_lb_affinity, tg_lb_affinity, TG_LB_MAX_CLIENTS,
		 TG_MAPS "/tg_lb_affinity");
BPF_TABLE_PINNED("lpm_trie", struct tg_lb_ranges_key, struct tg_lb_range, tg_lb_ranges, TG_LB_MAX_RANGES,
		 TG_MAPS "/tg_lb_ranges", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lru_hash", struct tg_frag_key, struct tg_frag, tg_lb_frag, 8192, TG_MAPS "/tg_lb_frag");
BPF_TABLE_PINNED("percpu_array", __u32, struct tg_hop, tg_hop, TG_LB_MAX_BACKENDS, TG_MAPS "/tg_hop");
BPF_TABLE_PINNED("percpu_array", __u32, struct tg_lb_count, tg_lb_count, TG_LB_MAX_SERVICES, TG_MAPS "/tg_lb_count");

#define TG_SECOND 1000000000ULL

/* By number, since the headers that bcc brings may be older. Kernels 5.11 and 5.6. */
static __u64 (*const tg_now)(void) = (void *)160;     /* bpf_ktime_get_coarse_ns */
static __u64 (*const tg_jiffies)(void) = (void *)118; /* bpf_jiffies64: one load */

#endif
