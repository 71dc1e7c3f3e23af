// Four-bit units of saved caches: every set packs them as it packs the codes that they are from, and what
// it decodes goes back into a unit without a difference.
#include "cache_kernels.h"
#include "comparison.h"

enum { TOKENS = 64, PORTABLE = 0 };

static void compare_units_of(bool keys, int32_t d, int32_t range, const kernel_sets *sets, generator *g) {
  begin_case("four-bit units of %s, D %d, codes around +-%d", keys ? "keys" : "values", d, range);
  int8_t *codes = take((size_t)(TOKENS * d));
  for (int32_t i = 0; i < TOKENS * d; i++) {
    const int32_t code = random_below(g, 2 * range + 1) - range + random_below(g, 3) * 40;
    codes[i] = (int8_t)(code > 127 ? 127 : code);
  }
  const intfa_cpu_kernels *portable = sets->kernels[PORTABLE];
  int64_t (*bytes_of)(int64_t, int32_t, bool) = keys ? portable->key_bytes : portable->value_bytes;
  uint8_t *unit = take((size_t)bytes_of(TOKENS, d, true)), *again = take((size_t)bytes_of(TOKENS, d, true));
  int8_t *decoded = take((size_t)(TOKENS * d)), *repeated = take((size_t)(TOKENS * d));
  for (int i = 0; i < sets->count; i++) {
    const intfa_cpu_kernels *k = sets->kernels[i];
    const int64_t bytes = (keys ? k->key_bytes : k->value_bytes)(TOKENS, d, true);
    uint8_t *packed = take((size_t)bytes), *taken = take((size_t)bytes);
    intfa_pack a = {.codes = codes, .end = TOKENS, .dimension = d, .int4 = true, .target = packed};
    (keys ? k->pack_keys : k->pack_values)(&a);
    if (i == PORTABLE) memcpy(unit, packed, (size_t)bytes);
    a.codes = NULL, a.four_bits = unit, a.target = taken;
    (keys ? k->pack_keys : k->pack_values)(&a);
    compare_bytes(k->name, "the unit", taken, packed, bytes);
  }
  // What the portable kernels decode has the codes in their order.
  (keys ? portable->open_key_unit : portable->open_value_unit)(unit, d, decoded);
  (keys ? intfa_four_bit_keys : intfa_four_bit_values)(decoded, d, again);
  (keys ? portable->open_key_unit : portable->open_value_unit)(again, d, repeated);
  compare_bytes("portable", "codes that went through a unit again", repeated, decoded, TOKENS * d);
  digest(again, (size_t)bytes_of(TOKENS, d, true));
  release_all();
}

void compare_units(const kernel_sets *sets) {
  static const int32_t dimensions[] = {1, 5, 16, 24, 63, 64, 65, 80, 96, 128, 192, 240, 256};
  static const int32_t ranges[] = {0, 3, 7, 15, 40, 80, 126, 127};
  generator g = {20261125};
  for (int32_t i = 0; i < 13; i++)
    for (int32_t j = 0; j < 8; j++)
      for (int32_t keys = 0; keys < 2; keys++) compare_units_of(keys, dimensions[i], ranges[j], sets, &g);
}
