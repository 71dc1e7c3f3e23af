// A GPU on the CPU: what runs CUDA kernel source, for device.h and driver.cpp.
//
// Every CUDA thread is a fibre. An operation of a warp, a warpgroup or a block is a meeting, which the
// last fibre to arrive carries out for all, with the fragment layouts of the PTX manual. Asynchrony is
// adversarial: cp.async lands at its wait and not before, TMA when nobody else can run or at random, in
// one schedule both when they are issued; wgmma reads registers and writes accumulators at its wait,
// and until then they hold garbage.
// Layouts, swizzles, synchronisation and arithmetic are modelled; timing, bank conflicts and memory
// ordering are not.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

namespace simulator {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
using Job = std::function<void()>;

struct Thread {
  Dim3 index;
  int linear, lane, warp, group;
  bool done = false;
  const char* where = "start";           // for reports of deadlocks
  std::deque<std::vector<Job>> copies;   // committed groups of cp.async
  std::vector<Job> open_copies;          // the group that is being made
};
extern Thread* me;
extern Dim3 block_index, grid_size;
extern u8* shared;
extern size_t shared_size;
extern int block_threads;

// Whether asynchronous copies land when they are issued, not as late as they may.
bool copies_land_at_once();
// Lets other fibres run.
void yield();
// Ends the process: a kernel did what a GPU does not allow.
[[noreturn]] void fail(const char* format, ...);

enum class Scope { warp, warpgroup, block };
// Waits until `count` fibres are here; the last one runs `action` on everybody's argument.
void meet(Scope scope, int id, int count, int position, void* argument, const char* operation,
          const std::function<void(void**)>& action);
template <class A>
void meet_warp(const char* operation, A& argument, void (*action)(A**)) {
  meet(Scope::warp, me->warp, 32, me->lane, &argument, operation,
       [action](void** all) { action((A**)all); });
}
// Runs a kernel, block after block.
void launch(Dim3 grid, int threads, size_t shared_bytes, const Job& kernel);

// `bytes` of shared memory, checked.
u8* at(u32 address, size_t bytes);

// ---- sm_90
void barrier_create(u32 address, u32 arrivals);
void barrier_arrive(u32 address, int expected_bytes);
void barrier_complete(u32 address, u32 bytes);
bool barrier_passed(u32 address, u32 parity);
void async_copy(Job job);
struct WarpgroupMma {
  int n;
  bool a_in_shared, a_unsigned;
  u64 a_descriptor, b_descriptor;
  bool accumulate;
  int* d[128];
  const u32* a[128];
  u64 operands;  // hash at issue
};
void wgmma_issue(const WarpgroupMma& mma);
void wgmma_close_group();
void wgmma_retire(int in_flight);
inline u32 swizzle(u32 address, u32 span) {
  return span == 128 ? address ^ (address >> 7 & 7) << 4 : address ^ (address >> 7 & 3) << 4;
}

}  // namespace simulator
