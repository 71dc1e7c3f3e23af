// The device functions of primitives.cuh and primitives_sm90.cuh for the simulator.
#pragma once
#include "simulator.h"

#include <algorithm>
#include <cmath>
#include <cstring>

struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
#define DEVICE static inline
#define DYNAMIC_SHARED_MEMORY u8* const shared_memory = simulator::shared
#define STATIC_SHARED_MEMORY static
#define threadIdx (simulator::me->index)
#define blockIdx (simulator::block_index)
#define gridDim (simulator::grid_size)
// The entry point takes its argument by address; the driver asks for the size of it.
#define KERNEL(NAME, PARAMETERS, THREADS)                                         \
  static void NAME##_body(const PARAMETERS& p);                                   \
  extern "C" void NAME(const void* p) { NAME##_body(*(const PARAMETERS*)p); }     \
  extern "C" const unsigned NAME##_parameter_bytes = sizeof(PARAMETERS);          \
  extern "C" const unsigned NAME##_threads = THREADS;                             \
  static void NAME##_body(const PARAMETERS& p)

DEVICE void __syncthreads() {
  simulator::meet(simulator::Scope::block, 0, simulator::block_threads, simulator::me->linear,
                  nullptr, "syncthreads", [](void**) {});
}
DEVICE void __syncwarp() {
  int none = 0;
  simulator::meet_warp<int>("syncwarp", none, [](int**) {});
}
DEVICE u32 shared_address(const void* p) { return (u32)((const u8*)p - simulator::shared); }

template <class To, class From>
DEVICE To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "the same size");
  To result;
  memcpy(&result, &x, sizeof result);
  return result;
}
DEVICE float bits_as_float(u32 x) { return bits<float>(x); }
DEVICE u32 float_as_bits(float x) { return bits<u32>(x); }

struct ShuffleArgument {
  u32 value;
  int lane;  // the lane to read
  u32 result;
};
DEVICE float shuffle(float value, int lane, const char* operation) {
  ShuffleArgument argument{bits<u32>(value), lane, 0};
  simulator::meet_warp<ShuffleArgument>(operation, argument, [](ShuffleArgument** all) {
    for (int i = 0; i < 32; i++) all[i]->result = all[all[i]->lane & 31]->value;
  });
  return bits<float>(argument.result);
}
DEVICE float __shfl_xor_sync(u32, float value, int mask) {
  return shuffle(value, simulator::me->lane ^ mask, "shfl.xor");
}
DEVICE float __shfl_sync(u32, float value, int lane) { return shuffle(value, lane, "shfl"); }
DEVICE int __any_sync(u32, int predicate) {
  ShuffleArgument argument{predicate != 0, 0, 0};
  simulator::meet_warp<ShuffleArgument>("vote.any", argument, [](ShuffleArgument** all) {
    u32 any = 0;
    for (int i = 0; i < 32; i++) any |= all[i]->value;
    for (int i = 0; i < 32; i++) all[i]->result = any;
  });
  return (int)argument.result;
}

// ---- matrices

struct LoadMatrixArgument {
  u32 address;
  u32* r;
  bool transposed;
};
DEVICE void load_matrix(LoadMatrixArgument argument) {
  const char* const operation = argument.transposed ? "ldmatrix.trans" : "ldmatrix";
  simulator::meet_warp<LoadMatrixArgument>(operation, argument, [](LoadMatrixArgument** all) {
    for (int m = 0; m < 4; m++) {
      u16 matrix[8][8];
      for (int row = 0; row < 8; row++) {
        const u32 address = all[m * 8 + row]->address;
        if (address & 15) simulator::fail("ldmatrix: %u is not a multiple of 16", address);
        memcpy(matrix[row], simulator::at(address, 16), 16);
      }
      for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        const bool transposed = all[0]->transposed;
        const u16 low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
        const u16 high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
        all[lane]->r[m] = low | (u32)high << 16;
      }
    }
  });
}
DEVICE void load_matrix_x4(u32 (&r)[4], u32 address) { load_matrix({address, r, false}); }
DEVICE void load_matrix_x4_transposed(u32 (&r)[4], u32 address) { load_matrix({address, r, true}); }

struct MmaArgument {
  int* d;
  const u32* a;
  u32 b0, b1;
  int c[4];
  bool a_unsigned;
};
DEVICE void mma(MmaArgument argument) {
  simulator::meet_warp<MmaArgument>("mma.m16n8k32", argument, [](MmaArgument** all) {
    int A[16][32], B[32][8];
    for (int lane = 0; lane < 32; lane++) {
      const int g = lane / 4, t = lane % 4;
      for (int b = 0; b < 4; b++) {
        for (int i = 0; i < 4; i++) {
          const int byte = all[lane]->a[i] >> (8 * b) & 255;
          A[g + 8 * (i & 1)][16 * (i >> 1) + 4 * t + b] = all[lane]->a_unsigned ? byte : (s8)byte;
        }
        B[4 * t + b][g] = (s8)(all[lane]->b0 >> (8 * b));
        B[16 + 4 * t + b][g] = (s8)(all[lane]->b1 >> (8 * b));
      }
    }
    for (int lane = 0; lane < 32; lane++) {
      for (int e = 0; e < 4; e++) {
        const int row = lane / 4 + 8 * (e >> 1), column = 2 * (lane % 4) + (e & 1);
        u32 sum = (u32)all[lane]->c[e];
        for (int k = 0; k < 32; k++) sum += (u32)(A[row][k] * B[k][column]);
        all[lane]->d[e] = (int)sum;
      }
    }
  });
}
DEVICE void mma_s8s8(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, int c0, int c1, int c2, int c3) {
  mma({d, a, b0, b1, {c0, c1, c2, c3}, false});
}
DEVICE void mma_u8s8(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, int c0, int c1, int c2, int c3) {
  mma({d, a, b0, b1, {c0, c1, c2, c3}, true});
}

DEVICE float float_of_f16(u16 x) { return (float)bits<_Float16>(x); }
DEVICE float float_of_bf16(u16 x) { return bits_as_float((u32)x << 16); }
struct MmaFloatArgument {
  float* d;
  const u32* a;
  u32 b0, b1;
  bool is_bf16;
};
DEVICE void mma_float(MmaFloatArgument argument) {
  simulator::meet_warp<MmaFloatArgument>("mma.m16n8k16", argument, [](MmaFloatArgument** all) {
    float A[16][16], B[16][8];
    const bool is_bf16 = all[0]->is_bf16;
    auto value = [is_bf16](u32 pair, int half) {
      const u16 x = (u16)(pair >> (16 * half));
      return is_bf16 ? float_of_bf16(x) : float_of_f16(x);
    };
    for (int lane = 0; lane < 32; lane++) {
      const int g = lane / 4, t = lane % 4;
      for (int h = 0; h < 2; h++) {
        for (int i = 0; i < 4; i++) {
          A[g + 8 * (i & 1)][8 * (i >> 1) + 2 * t + h] = value(all[lane]->a[i], h);
        }
        B[2 * t + h][g] = value(all[lane]->b0, h);
        B[8 + 2 * t + h][g] = value(all[lane]->b1, h);
      }
    }
    for (int lane = 0; lane < 32; lane++) {
      for (int e = 0; e < 4; e++) {
        const int row = lane / 4 + 8 * (e >> 1), column = 2 * (lane % 4) + (e & 1);
        float sum = all[lane]->d[e];
        for (int k = 0; k < 16; k++) sum += A[row][k] * B[k][column];
        all[lane]->d[e] = sum;
      }
    }
  });
}
DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  mma_float({d, a, b0, b1, false});
}
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  mma_float({d, a, b0, b1, true});
}

// ---- copies and conversions

DEVICE void copy_async_16(u32 destination, const void* source, u32 valid) {
  if ((destination | (uintptr_t)source) & 15) simulator::fail("cp.async: not a multiple of 16");
  auto copy = [=] {
    u8* const target = simulator::at(destination, 16);
    memset(target, 0, 16);
    memcpy(target, source, valid);
  };
  if (simulator::copies_land_at_once()) return copy();
  simulator::me->open_copies.push_back(copy);
}
DEVICE void copy_async_commit() {
  simulator::me->copies.push_back(std::move(simulator::me->open_copies));
  simulator::me->open_copies.clear();
}
template <int N>
DEVICE void copy_async_wait() {
  auto& groups = simulator::me->copies;
  while (groups.size() > N) {
    for (const auto& job : groups.front()) job();
    groups.pop_front();
  }
}

DEVICE float exp2_fast(float x) { return x < -126.f ? 0.f : exp2f(x); }
DEVICE int round_to_int(float x) { return (int)nearbyintf(x); }
DEVICE u32 pack_u8x4(float a, float b, float c, float d) {
  const float f[4] = {a, b, c, d};
  u32 result = 0;
  for (int i = 0; i < 4; i++) {
    result |= (u32)std::clamp(nearbyintf(f[i]), 0.f, 255.f) << (8 * i);
  }
  return result;
}
DEVICE u32 pack_f16x2(float low, float high) {
  return bits<u16>((_Float16)low) | (u32)bits<u16>((_Float16)high) << 16;
}
DEVICE u16 bf16_of_float(float x) {
  const u32 b = float_as_bits(x);
  return (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
DEVICE u32 pack_bf16x2(float low, float high) {
  return bf16_of_float(low) | (u32)bf16_of_float(high) << 16;
}
DEVICE int dot_u8s8(u32 a, u32 b, int c) {
  for (int i = 0; i < 4; i++) c += (int)(a >> (8 * i) & 255) * (s8)(b >> (8 * i));
  return c;
}
DEVICE u32 select_bytes(u32 a, u32 b, u32 selector) {
  const u64 all = a | (u64)b << 32;
  u32 result = 0;
  for (int i = 0; i < 4; i++) result |= (u32)(all >> 8 * (selector >> (4 * i) & 7) & 255) << (8 * i);
  return result;
}
// Blocks and threads run one after the other.
DEVICE void atomic_min(u64* place, u64 value) { *place = std::min(*place, value); }
DEVICE void atomic_max(u32* place, u32 value) { *place = std::max(*place, value); }

// ---- sm_90

// What the simulated cuTensorMapEncodeTiled writes into the words of a tensor map.
struct SimulatedTensorMap {
  const u8* base;
  u64 width, height, pitch;
  u32 box_width, box_height;  // the span of the swizzle is the width of the box
};
DEVICE void wgmma_fence() {}
DEVICE void wgmma_commit() { simulator::wgmma_close_group(); }
template <int N, int M>
DEVICE void wgmma_wait(int (&)[M]) {
  simulator::wgmma_retire(N);
}
template <class T>
DEVICE void pin(T&) {}
struct WgmmaArgument {
  int* d;
  const u32* a;
  u64 a_descriptor, b_descriptor;
  bool accumulate;
};
DEVICE void wgmma(WgmmaArgument argument, int registers, bool a_in_shared) {
  using namespace simulator;
  meet(Scope::warpgroup, me->group, 128, me->linear & 127, &argument,
       a_in_shared ? "wgmma.ss" : "wgmma.rs", [=](void** raw) {
         WgmmaArgument** const all = (WgmmaArgument**)raw;
         WarpgroupMma m = {};
         m.n = 2 * registers;
         m.a_in_shared = a_in_shared;
         m.a_unsigned = !a_in_shared;
         m.a_descriptor = all[0]->a_descriptor;
         m.b_descriptor = all[0]->b_descriptor;
         m.accumulate = all[0]->accumulate;
         for (int i = 0; i < 128; i++) {
           if (all[i]->a_descriptor != m.a_descriptor || all[i]->b_descriptor != m.b_descriptor) {
             fail("descriptors of a wgmma differ across the warpgroup");
           }
           m.d[i] = all[i]->d;
           m.a[i] = all[i]->a;
         }
         wgmma_issue(m);
       });
}
template <int M>
DEVICE void wgmma_s8s8_ss(int (&d)[M], u64 a, u64 b, int accumulate) {
  wgmma({d, nullptr, a, b, accumulate != 0}, M, true);
}
template <int M>
DEVICE void wgmma_u8s8_rs(int (&d)[M], const u32 (&a)[4], u64 b) {
  wgmma({d, a, 0, b, true}, M, false);
}
template <int M>
DEVICE void wgmma_u8s8_rs_first(int (&d)[M], const u32 (&a)[4], u64 b) {
  wgmma({d, a, 0, b, false}, M, false);
}
template <int THREADS>
DEVICE void sync_threads() {
  using namespace simulator;
  meet(Scope::block, 0, THREADS, me->linear, nullptr, "bar.sync", [](void**) {});
}
DEVICE void barrier_init(u32 b, u32 arrivals) { simulator::barrier_create(b, arrivals); }
DEVICE void barrier_init_fence() {}
DEVICE void barrier_expect(u32 b, u32 bytes) { simulator::barrier_arrive(b, (int)bytes); }
DEVICE void barrier_arrive(u32 b) { simulator::barrier_arrive(b, 0); }
DEVICE void barrier_wait(u32 b, u32 parity) {
  while (!simulator::barrier_passed(b, parity)) simulator::yield();
}
DEVICE void tma_load_2d(u32 destination, const void* map, u32 barrier, int x, int y) {
  const SimulatedTensorMap m = *(const SimulatedTensorMap*)map;
  if (destination & 1023) simulator::fail("TMA: %u is not a multiple of 1024", destination);
  simulator::async_copy([=] {
    for (u32 row = 0; row < m.box_height; row++) {
      for (u32 column = 0; column < m.box_width; column += 16) {
        u8 chunk[16] = {};
        for (int i = 0; i < 16; i++) {
          const long X = x + (long)column + i, Y = y + (long)row;
          const bool exists = X >= 0 && Y >= 0 && (u64)X < m.width && (u64)Y < m.height;
          if (exists) chunk[i] = m.base[Y * m.pitch + X];
        }
        const u32 place = destination + row * m.box_width + column;
        memcpy(simulator::at(simulator::swizzle(place, m.box_width), 16), chunk, 16);
      }
    }
    simulator::barrier_complete(barrier, m.box_width * m.box_height);
  });
}
DEVICE void bulk_load(u32 destination, const void* source, u32 bytes, u32 barrier) {
  if (((uintptr_t)source | bytes | destination) & 15) simulator::fail("bulk copy: alignment");
  simulator::async_copy([=] {
    memcpy(simulator::at(destination, bytes), source, bytes);
    simulator::barrier_complete(barrier, bytes);
  });
}
template <int N>
DEVICE void registers_raise() {}
template <int N>
DEVICE void registers_lower() {}
