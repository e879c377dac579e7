# SPDX-License-Identifier: Apache-2.0
"""The exchange of Ulysses as Python engines write it, for benchmarks/ulysses_exchange.

Heads go to the other rank, tensor by tensor: transpose and copy, all_to_all_single, transpose and
copy. Run it as `torchrun --nproc-per-node 2 ulysses_exchange_torch.py [results.json]`.
"""

import json
import os
import statistics
import sys

import torch
import torch.distributed as dist

ROUNDS, WARM_UP = 40, 5


def to_heads(x, ranks):
    """[B, own tokens, heads, d] -> [B, all tokens, own heads, d]."""
    batch, tokens, heads, dim = x.shape
    sent = x.reshape(batch, tokens, ranks, heads // ranks, dim).transpose(0, 2).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    return received.reshape(ranks * tokens, batch, heads // ranks, dim).transpose(0, 1).contiguous()


def to_tokens(x, ranks):
    """[B, all tokens, own heads, d] -> [B, own tokens, heads, d]."""
    batch, tokens, heads, dim = x.shape
    sent = x.reshape(batch, ranks, tokens // ranks, heads, dim).transpose(0, 3).transpose(0, 1).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    return received.reshape(heads * ranks, tokens // ranks, batch, dim).transpose(0, 2).contiguous()


def median_ms(work, busy):
    times = []
    for i in range(ROUNDS + WARM_UP):
        dist.barrier()
        torch.cuda.synchronize()
        # As in a model, the host queues the work while the device is busy with what came before.
        busy.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        if i >= WARM_UP:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def main():
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", device_id=torch.device("cuda", int(os.environ["LOCAL_RANK"])))
    ranks = dist.get_world_size()
    busy = torch.empty(4 << 30, device="cuda", dtype=torch.uint8)
    rows = []
    for tokens, heads, dim in [(32760, 12, 128), (20280, 12, 128), (75600, 40, 128), (32760, 24, 64)]:
        q, k, v = (torch.randn(1, tokens // ranks, heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        gathered = to_heads(q, ranks)
        times = torch.tensor(
            [median_ms(lambda: [to_heads(x, ranks) for x in (q, k, v)], busy), median_ms(lambda: to_tokens(gathered, ranks), busy)],
            device="cuda",
        )
        dist.all_reduce(times, op=dist.ReduceOp.MAX)
        rows.append({"tokens": tokens, "heads": heads, "head_dim": dim, "qkv_ms": times[0].item(), "back_ms": times[1].item()})
        if dist.get_rank() == 0:
            print("[{tokens:5d}, {heads:2d}, {head_dim:3d}] bf16: q, k, v {qkv_ms:.3f} ms, back {back_ms:.3f} ms".format(**rows[-1]))
    if dist.get_rank() == 0 and len(sys.argv) > 1:
        with open(sys.argv[1], "w") as file:
            json.dump({"benchmark": "ulysses_exchange_torch", "torch": torch.__version__, "rows": rows}, file, indent=2)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
