// Fibres, meetings and the scheduler; x86-64 and Linux.
#include "simulator.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

namespace simulator {

Thread* me;
Dim3 block_index, grid_size;
u8* shared;
size_t shared_size;
int block_threads;

static std::vector<Thread> threads;
static const Job* kernel_body;
static u64 progress;  // counts events; a round without any is a deadlock
// 1: warps in random order; 2: TMA also lands at random; 3: all copies land at once, and a warp that
// arrives at an mbarrier lets the others go first: finds stages that are released too early.
static int schedule = 1;
static bool has_given_way;  // the warp that runs shall stop, others are to go first
bool copies_land_at_once() { return schedule == 3; }
static u32 random_state = 12345;
static u32 random_next() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  return random_state ^= random_state << 5;
}

[[noreturn]] void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "CUDA simulator: block %u,%u,%u thread %d: ", block_index.x, block_index.y,
          block_index.z, me ? me->linear : -1);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  _Exit(3);
}

u8* at(u32 address, size_t bytes) {
  if (address + bytes > shared_size) {
    fail("shared memory %u + %zu is beyond %zu", address, bytes, shared_size);
  }
  return shared + address;
}

// ---- fibres

// Switches stacks and saves what a callee must; swapcontext would make a system call each time.
extern "C" void simulator_switch(void** save, void* to);
asm(".text\n.globl simulator_switch\nsimulator_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
static void* scheduler_stack;
static std::vector<void*> stack_pointers;

void yield() { simulator_switch(&stack_pointers[me->linear], scheduler_stack); }
static void resume(int i) { simulator_switch(&scheduler_stack, stack_pointers[i]); }

static void run_thread() {
  (*kernel_body)();
  me->done = true;
  progress++;
  yield();
  abort();
}

static void prepare(int i, u8* stack, size_t size) {
  void** top = (void**)((uintptr_t)(stack + size) & ~15ull);
  *--top = nullptr;
  *--top = (void*)run_thread;
  top -= 6;
  memset(top, 0, 6 * sizeof(void*));
  stack_pointers[i] = top;
}

// ---- meetings

struct Meeting {
  int arrived = 0;
  u64 generation = 0;
  const char* operation = nullptr;
  void* arguments[1024];
};
static Meeting warp_meetings[32], group_meetings[8], block_meeting;

void meet(Scope scope, int id, int count, int position, void* argument, const char* operation,
          const std::function<void(void**)>& action) {
  Meeting& m = scope == Scope::warp        ? warp_meetings[id]
               : scope == Scope::warpgroup ? group_meetings[id]
                                           : block_meeting;
  me->where = operation;
  if (m.arrived == 0) {
    m.operation = operation;
  } else if (strcmp(m.operation, operation) != 0) {
    fail("some threads are in %s, this one in %s", m.operation, operation);
  }
  m.arguments[position] = argument;
  progress++;
  if (++m.arrived == count) {
    m.arrived = 0;
    m.generation++;
    action(m.arguments);
    return;
  }
  for (const u64 generation = m.generation; m.generation == generation;) yield();
}

// ---- mbarriers and the copy engine

struct Barrier {
  u32 arrivals;
  int pending;
  long bytes;
  u32 phase;
};
static std::map<u32, Barrier> barriers;
static std::deque<Job> copies_in_flight;

static Barrier& barrier_at(u32 address) {
  if (address & 7) fail("mbarrier at %u is not aligned", address);
  const auto found = barriers.find(address);
  if (found == barriers.end()) fail("mbarrier at %u is not initialised", address);
  return found->second;
}
static void advance(Barrier& b) {
  if (b.pending < 0) fail("more arrivals than the mbarrier expects");
  if (b.pending == 0 && b.bytes == 0) {
    b.phase ^= 1;
    b.pending = (int)b.arrivals;
  }
  progress++;
}
void barrier_create(u32 address, u32 arrivals) {
  barriers[address] = {arrivals, (int)arrivals, 0, 0};
}
void barrier_arrive(u32 address, int expected) {
  Barrier& b = barrier_at(address);
  b.bytes += expected;
  b.pending--;
  advance(b);
  if (schedule != 3 || expected != 0) return;
  has_given_way = true;
  yield();
}
void barrier_complete(u32 address, u32 bytes) {
  Barrier& b = barrier_at(address);
  b.bytes -= bytes;
  advance(b);
}
bool barrier_passed(u32 address, u32 parity) {
  me->where = "mbarrier wait";
  return barrier_at(address).phase != parity;
}
void async_copy(Job job) {
  progress++;
  if (schedule == 3) {
    job();
  } else {
    copies_in_flight.push_back(std::move(job));
  }
}
static bool land_one_copy() {
  if (copies_in_flight.empty()) return false;
  const size_t n = copies_in_flight.size();
  const size_t i = random_next() & 4 ? n - 1 : random_next() % n;  // often the newest first
  const Job job = std::move(copies_in_flight[i]);
  copies_in_flight.erase(copies_in_flight.begin() + i);
  job();
  progress++;
  return true;
}

// ---- wgmma

struct Shadow {
  int users = 0;
  std::vector<int> values;  // the accumulators while a wgmma is in flight
};
struct Warpgroup {
  std::deque<std::vector<WarpgroupMma>> groups;
  std::vector<WarpgroupMma> open;
  std::map<int*, Shadow> shadows;
};
static Warpgroup warpgroups[8];

static int read_k_major(u64 descriptor, int row, int k) {
  const u32 base = (u32)(descriptor & 0x3FFF) << 4;
  const u32 group_stride = (u32)(descriptor >> 32 & 0x3FFF) << 4;
  const int mode = (int)(descriptor >> 62);
  if (mode != 1 && mode != 2) fail("only swizzles of 128 and 64 bytes are modelled");
  const u32 span = mode == 1 ? 128 : 64;
  return (s8)*at(swizzle(base + row / 8 * group_stride + row % 8 * span + k, span), 1);
}
// Differs between issue and retirement if an operand had not landed, or was overwritten too early.
static u64 shared_operands(const WarpgroupMma& m) {
  u64 hash = 0;
  for (int k = 0; k < 32; k++) {
    for (int n = 0; n < m.n; n++) hash = hash * 31 + (u8)read_k_major(m.b_descriptor, n, k);
    for (int row = 0; m.a_in_shared && row < 64; row++) {
      hash = hash * 31 + (u8)read_k_major(m.a_descriptor, row, k);
    }
  }
  return hash;
}
void wgmma_issue(const WarpgroupMma& mma) {
  Warpgroup& w = warpgroups[me->group];
  for (int* d : mma.d) {
    Shadow& shadow = w.shadows[d];
    if (shadow.users++ > 0) continue;
    shadow.values.assign(d, d + mma.n / 2);
    std::fill(d, d + mma.n / 2, 0x5EADBEEF);
  }
  w.open.push_back(mma);
  w.open.back().operands = shared_operands(mma);
}
static void execute(const WarpgroupMma& m, Warpgroup& w) {
  static int A[64][32], B[256][32];
  if (shared_operands(m) != m.operands) fail("operands of a wgmma changed while it was in flight");
  for (int k = 0; k < 32; k++) {
    for (int n = 0; n < m.n; n++) B[n][k] = read_k_major(m.b_descriptor, n, k);
    for (int row = 0; m.a_in_shared && row < 64; row++) {
      A[row][k] = read_k_major(m.a_descriptor, row, k);
    }
  }
  for (int i = 0; !m.a_in_shared && i < 128; i++) {
    for (int r = 0; r < 4; r++) {
      for (int b = 0; b < 4; b++) {
        const int byte = m.a[i][r] >> (8 * b) & 255;
        const int row = 16 * (i / 32) + i % 32 / 4 + 8 * (r & 1);
        A[row][16 * (r >> 1) + 4 * (i % 4) + b] = m.a_unsigned ? byte : (s8)byte;
      }
    }
  }
  for (int i = 0; i < 128; i++) {
    Shadow& shadow = w.shadows[m.d[i]];
    for (int j = 0; j < m.n / 2; j++) {
      const int row = 16 * (i / 32) + i % 32 / 4 + 8 * (j >> 1 & 1);
      const int column = 8 * (j >> 2) + 2 * (i % 4) + (j & 1);
      u32 sum = m.accumulate ? (u32)shadow.values[j] : 0u;
      for (int k = 0; k < 32; k++) sum += (u32)(A[row][k] * B[column][k]);
      shadow.values[j] = (int)sum;
    }
    if (--shadow.users > 0) continue;
    memcpy(m.d[i], shadow.values.data(), 4 * shadow.values.size());
    w.shadows.erase(m.d[i]);
  }
}
static void meet_group(const char* operation, const std::function<void(Warpgroup&)>& action) {
  meet(Scope::warpgroup, me->group, 128, me->linear & 127, nullptr, operation,
       [&](void**) { action(warpgroups[me->group]); });
}
void wgmma_close_group() {
  meet_group("wgmma.commit_group", [](Warpgroup& w) {
    w.groups.push_back(std::move(w.open));
    w.open.clear();
  });
}
void wgmma_retire(int in_flight) {
  meet_group("wgmma.wait_group", [in_flight](Warpgroup& w) {
    while ((int)w.groups.size() > in_flight) {
      for (const WarpgroupMma& m : w.groups.front()) execute(m, w);
      w.groups.pop_front();
    }
  });
}

// ---- the scheduler: one block at a time; a warp runs until it blocks, warps in random order

static void reset_block(int thread_count, u8* stacks, size_t stack_size) {
  memset(shared, 0xCD, shared_size);
  barriers.clear();
  copies_in_flight.clear();
  for (Warpgroup& w : warpgroups) w = {};
  for (Meeting* all : {warp_meetings, group_meetings, &block_meeting}) {
    const int count = all == warp_meetings ? 32 : all == group_meetings ? 8 : 1;
    for (int i = 0; i < count; i++) all[i].arrived = 0;
  }
  threads.assign(thread_count, {});
  for (int i = 0; i < thread_count; i++) {
    Thread& t = threads[i];
    t.index = {(unsigned)i, 0, 0};
    t.linear = i;
    t.lane = i & 31;
    t.warp = i >> 5;
    t.group = i >> 7;
    prepare(i, stacks + stack_size * i, stack_size);
  }
}

static void run_warp(int warp) {
  for (u64 seen = progress + 1; seen != progress;) {
    seen = progress;
    for (int i = warp * 32; i < warp * 32 + 32; i++) {
      if (threads[i].done) continue;
      me = &threads[i];
      resume(i);
    }
    if (has_given_way) {
      has_given_way = false;
      return;
    }
  }
}

static void run_block(int thread_count) {
  std::vector<int> order(thread_count / 32);
  for (size_t i = 0; i < order.size(); i++) order[i] = (int)i;
  for (long left = thread_count; left > 0;) {
    const u64 before = progress;
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random_next() % i]);
    for (const int warp : order) run_warp(warp);
    left = std::count_if(threads.begin(), threads.end(), [](const Thread& t) { return !t.done; });
    if (schedule == 2 && (random_next() & 1)) land_one_copy();
    if (left == 0 || progress != before || land_one_copy()) continue;
    for (const Thread& t : threads) {
      if (!t.done && t.lane == 0) fprintf(stderr, "warp %d waits in %s\n", t.warp, t.where);
    }
    fail("deadlock: %ld threads wait", left);
  }
}

void launch(Dim3 grid, int thread_count, size_t shared_bytes, const Job& kernel) {
  const char* const chosen = getenv("CUDA_SIMULATOR_SCHEDULE");
  schedule = chosen ? atoi(chosen) : 1;
  kernel_body = &kernel;
  grid_size = grid;
  block_threads = thread_count;
  shared_size = shared_bytes;
  const size_t stack_size = 128 << 10;
  static std::vector<u8> stacks;
  stacks.resize(stack_size * thread_count);
  std::vector<u8> memory(shared_bytes + 1024);
  shared = (u8*)(((uintptr_t)memory.data() + 1023) & ~1023ull);
  stack_pointers.resize(thread_count);
  for (unsigned z = 0; z < grid.z; z++) {
    for (unsigned y = 0; y < grid.y; y++) {
      for (unsigned x = 0; x < grid.x; x++) {
        block_index = {x, y, z};
        reset_block(thread_count, stacks.data(), stack_size);
        run_block(thread_count);
      }
    }
  }
  me = nullptr;
}

}  // namespace simulator
