// Powers of two as fixed sequences of IEEE operations without fused multiply-add, so that every
// instruction set computes the same bits.
#pragma once
#include "number_formats.h"

// 2^x. Relative error below 2e-7; x is clamped to -126...126; exactly 1 at 0 and exact at integers.
// The fraction is -1/2...1/2 around the nearest integer; Taylor's polynomial of degree 6 in
// f * ln 2 leaves (ln 2 / 2)^7 / 7! = 1.2e-7.
static inline float exp2_fast(float x) {
  x = x < -126.0f ? -126.0f : x > 126.0f ? 126.0f : x;
  float shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
  float f = x - (shifted - 12582912.0f);
  float p = 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return p * float_of((bits_of(shifted) - 0x4B400000u + 127u) << 23);
}

// tanh(x) = 1 - 2 / (1 + e^2x).
static inline float tanh_fast(float x) { return 1.0f - 2.0f / (1.0f + exp2_fast(x * 2.8853901f)); }
static inline float soft_cap(float x, float cap) { return cap * tanh_fast(x / cap); }

// The probabilities of the integer path: 65280 * 2^(-i/64), rounded. Sixteen bits of which the
// shift by i >> 6 and one rounding leave the eight that multiply.
static const uint16_t power_table[64] = {
    65280, 64577, 63881, 63193, 62512, 61839, 61173, 60514, 59862, 59217, 58579, 57948,
    57324, 56707, 56096, 55491, 54894, 54302, 53717, 53139, 52566, 52000, 51440, 50886,
    50338, 49796, 49259, 48729, 48204, 47684, 47171, 46663, 46160, 45663, 45171, 44684,
    44203, 43727, 43256, 42790, 42329, 41873, 41422, 40976, 40534, 40098, 39666, 39238,
    38816, 38398, 37984, 37575, 37170, 36770, 36374, 35982, 35594, 35211, 34831, 34456,
    34085, 33718, 33355, 32995,
};
// 255 * 2^(-i/64), for the row sum that is taken before rounding.
static const float real_power_table[64] = {
    2.550000000e+02f, 2.522531434e+02f, 2.495358758e+02f, 2.468478787e+02f, 2.441888366e+02f, 2.415584377e+02f,
    2.389563733e+02f, 2.363823384e+02f, 2.338360310e+02f, 2.313171524e+02f, 2.288254071e+02f, 2.263605028e+02f,
    2.239221504e+02f, 2.215100640e+02f, 2.191239605e+02f, 2.167635601e+02f, 2.144285859e+02f, 2.121187640e+02f,
    2.098338235e+02f, 2.075734963e+02f, 2.053375173e+02f, 2.031256243e+02f, 2.009375578e+02f, 1.987730610e+02f,
    1.966318802e+02f, 1.945137642e+02f, 1.924184645e+02f, 1.903457354e+02f, 1.882953336e+02f, 1.862670188e+02f,
    1.842605529e+02f, 1.822757006e+02f, 1.803122292e+02f, 1.783699082e+02f, 1.764485100e+02f, 1.745478089e+02f,
    1.726675822e+02f, 1.708076093e+02f, 1.689676720e+02f, 1.671475545e+02f, 1.653470432e+02f, 1.635659271e+02f,
    1.618039970e+02f, 1.600610465e+02f, 1.583368710e+02f, 1.566312684e+02f, 1.549440384e+02f, 1.532749833e+02f,
    1.516239072e+02f, 1.499906164e+02f, 1.483749195e+02f, 1.467766268e+02f, 1.451955509e+02f, 1.436315064e+02f,
    1.420843097e+02f, 1.405537794e+02f, 1.390397359e+02f, 1.375420017e+02f, 1.360604011e+02f, 1.345947602e+02f,
    1.331449073e+02f, 1.317106721e+02f, 1.302918865e+02f, 1.288883840e+02f,
};
