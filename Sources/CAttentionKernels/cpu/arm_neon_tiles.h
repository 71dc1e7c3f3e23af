// The integer tile loop of the NEON sets. Included once per set, inside its target region, after
// arm_neon_lanes.h and what the set has of its own:
//   multiply_keys    sums += queries x eight keys
//   multiply_values  sums += P x eight channels
//   row_sums, add_weights, keep_row_sums   the sum of p * n
//   separate         sums of eight channels as floats, row by row
//
// Loop: key tile > eight query rows (two for the last few) > scores, exponentials, values. A register
// holds LANE_ROWS rows x LANE_KEYS keys of scores, or as many channels of values. The float
// operations are those of portable_tiles.c one by one (no fused multiply-add), so all bits are equal.
//
// Sums begin at the bits of 1.5 * 2^23, so that they are floats without conversion: x - 1.5 * 2^23 is
// exact for |x| < 2^22, and |q.k| <= 256 * 127 * 127 = 4.13e6, |p.v| <= 128 * 255 * 127 = 4.15e6 are
// below 2^22 = 4.19e6. On Neoverse a conversion issues at a quarter of the rate of a subtraction.
//
// Per 16 scores, besides the products: 20 instructions from sums to logits, 25 from logits to P (one
// of them a four-register tbl), Dv / 8 to add to the output (tiles of 128 keys).

// ---------------------------------------------------------------------------------- scores

// Logits of R rows and keys [from, to), and their maxima per lane.
INLINE void score(const int R, const intfa_attend_tiles *a, state *s, int32_t row, int64_t from,
                  int64_t to, float32x4_t top[GROUPS]) {
  const int32_t stride = (int32_t)padded(a->head_dimension, QUERY_PIECE);
  const int8_t *query = s->query + (int64_t)row * stride, *key = a->key;
  const float *scale = s->scale + row / LANE_ROWS * 4;
  const float *key_scales = a->key_scale, *biases = a->bias;
  KEEP_LOOP for (int64_t j = from; j < to; j += 8) {
    int32x4_t sum[GROUPS][VECTORS];
    UNROLL for (int i = 0; i < R / LANE_ROWS; i++)
      UNROLL for (int v = 0; v < VECTORS; v++) sum[i][v] = vdupq_n_s32(MAGIC_BITS);
    const int64_t at = key_place(a->units, j);
    multiply_keys(R, query, key + at * stride, stride, sum);
    UNROLL for (int v = 0; v < VECTORS; v++) {
      float32x4_t key_scale = key_lanes(key_scales + at + v * LANE_KEYS);
      float32x4_t bias = key_lanes(biases + at + v * LANE_KEYS);
      UNROLL for (int i = 0; i < R / LANE_ROWS; i++) {
        float32x4_t x = vmulq_f32(float_of_sum(sum[i][v]), key_scale);
        x = vaddq_f32(vmulq_f32(x, vld1q_f32(scale + 4 * i)), bias);
        top[i] = vmaxnmq_f32(top[i], x);
        vst1q_f32(s->rows.logit[i] + (j - from) * LANE_ROWS + 4 * v, x);
      }
    }
  }
}

static __attribute__((noinline)) void cap_logits(const intfa_attend_tiles *a, group *g, int32_t row,
                                                 int32_t groups, int64_t from, int64_t to,
                                                 float32x4_t *top) {
  for (int32_t i = 0; i < groups; i++) {
    top[i] = vdupq_n_f32(-__builtin_inff());
    for (int64_t j = from; j < to; j += LANE_KEYS) {
      float *logit = g->logit[i] + (j - from) * LANE_ROWS;
      const float *fold = a->fold + key_place(a->units, j);
      for (int32_t lane = 0; lane < 4; lane++) {
        int32_t r = row + i * LANE_ROWS + lane_row(lane);
        float shift = r < a->rows ? a->row_shift[r] : 0;
        logit[lane] = soft_cap(logit[lane] + shift, a->softcap) + fold[lane_key(lane)];
      }
      top[i] = vmaxnmq_f32(top[i], vld1q_f32(logit));
    }
  }
}

// Logits of keys that a row does not see become -inf; then the maxima are taken anew.
static __attribute__((noinline)) void mask_logits(const intfa_attend_tiles *a, group *g, int32_t row,
                                                  int32_t groups, int64_t begin, int64_t end,
                                                  int64_t from, int64_t to, float32x4_t *top) {
  for (int32_t i = 0; i < groups; i++) {
    int32_t first[4], last[4], key[4];
    for (int32_t lane = 0; lane < 4; lane++) {
      key_range seen = visible_keys(&a->visible, row + i * LANE_ROWS + lane_row(lane), begin, end);
      first[lane] = (int32_t)(seen.begin - from);
      last[lane] = (int32_t)(seen.end > begin ? seen.end - from : 0);
      key[lane] = lane_key(lane);
    }
    top[i] = vdupq_n_f32(-__builtin_inff());
    int32x4_t keys = vld1q_s32(key);
    for (int64_t j = from; j < to; j += LANE_KEYS) {
      float *logit = g->logit[i] + (j - from) * LANE_ROWS;
      uint32x4_t seen = vandq_u32(vcgeq_s32(keys, vld1q_s32(first)), vcltq_s32(keys, vld1q_s32(last)));
      float32x4_t x = vbslq_f32(seen, vld1q_f32(logit), vdupq_n_f32(-__builtin_inff()));
      vst1q_f32(logit, x);
      top[i] = vmaxnmq_f32(top[i], x);
      keys = vaddq_s32(keys, vdupq_n_s32(LANE_KEYS));
    }
  }
}

// Logits with what the mask adds to them; then the maxima are taken anew.
static __attribute__((noinline)) void add_mask(const intfa_attend_tiles *a, group *g, int32_t row,
                                               int32_t groups, int64_t begin, int64_t end,
                                               int64_t from, int64_t to, float32x4_t *top) {
  const int64_t first = from > begin ? from : begin, stop = to < end ? to : end;
  for (int32_t r = 0; r < groups * LANE_ROWS && row + r < a->rows; r++) {
    float line[INTFA_MAX_TILE];
    float *logit = g->logit[r / LANE_ROWS] + r % LANE_ROWS * LANE_KEYS;
    for (int64_t j = first; j < stop; j++)
      line[j - first] = logit[(j - from) / LANE_KEYS * 4 + (j - from) % LANE_KEYS];
    mask_row(a->mask, row + r, first, (int32_t)(stop - first), line);
    for (int64_t j = first; j < stop; j++)
      logit[(j - from) / LANE_KEYS * 4 + (j - from) % LANE_KEYS] = line[j - first];
  }
  for (int32_t i = 0; i < groups; i++) {
    top[i] = vdupq_n_f32(-__builtin_inff());
    for (int64_t j = from; j < to; j += LANE_KEYS)
      top[i] = vmaxnmq_f32(top[i], vld1q_f32(g->logit[i] + (j - from) * LANE_ROWS));
  }
}

// ---------------------------------------------------------------------------------- exponentials

INLINE void exponentials(const int R, group *g, const uint8_t *mantissa, const int8_t *n,
                         int64_t count) {
  uint8x16x4_t mantissas = vld1q_u8_x4(mantissa);
  UNROLL for (int i = 0; i < R / LANE_ROWS; i++) {
    row_sums sums = {0};
    float32x4_t top = row_lanes(g->top + i * LANE_ROWS);
    KEEP_LOOP for (int64_t u = 0; u < count / KEY_UNIT; u++) {
      uint8x16_t p = probabilities(top, g->logit[i] + 16 * u, mantissas);
      vst1q_u8(g->whole.p[u][i], p);
      add_weights(&sums, p, n + u * KEY_UNIT);
    }
    keep_row_sums(&sums, &g->whole, i);
  }
}

// Rests of the rows that have one, and their P without rounding; zeros for the others.
static __attribute__((noinline)) void add_rests(const intfa_attend_tiles *a, const state *s, group *g,
                                                int32_t row, int32_t rows, int64_t begin,
                                                const int8_t *n, int64_t count) {
  const uint8x16x4_t high = vld1q_u8_x4(s->high), low = vld1q_u8_x4(s->low);
  for (int32_t i = 0; i < rows / LANE_ROWS; i++) {
    row_sums sums = {0}, rest_sums = {0};
    const float32x4_t top = row_lanes(g->top + i * LANE_ROWS);
    uint8_t chosen[16];
    for (int32_t byte = 0; byte < 16; byte++) {
      const int32_t r = row + i * LANE_ROWS + byte / (16 / LANE_ROWS);
      chosen[byte] = rests_in(a, r, r, begin) ? 255 : 0;
    }
    const uint8x16_t has_rest = vld1q_u8(chosen);
    for (int64_t u = 0; u < count / KEY_UNIT; u++) {
      uint8x16_t p, rest;
      bytes_of_powers(top, g->logit[i] + 16 * u, high, low, &p, &rest);
      p = vbslq_u8(has_rest, p, vld1q_u8(g->whole.p[u][i]));
      rest = vandq_u8(has_rest, rest);
      vst1q_u8(g->whole.p[u][i], p);
      vst1q_u8(g->rest.p[u][i], rest);
      add_weights(&sums, p, n + u * KEY_UNIT);
      add_weights(&rest_sums, rest, n + u * KEY_UNIT);
    }
    keep_row_sums(&sums, &g->whole, i);
    keep_row_sums(&rest_sums, &g->rest, i);
  }
  for (int32_t i = 0; i < rows; i++) g->rest.gain[i] = g->whole.gain[i] * REST_UNIT;
}

// ---------------------------------------------------------------------------------- row sums, gains

// The sum of p * n with real n of one row, in lanes of key mod 16 as the portable kernel has it.
static __attribute__((noinline)) float real_row_sum(const intfa_attend_tiles *a, const group *g,
                                                    int32_t row, int32_t i, int64_t begin,
                                                    int64_t from, int64_t to) {
  const bool has_rest = rests_in(a, row + i, row + i, begin);
  float sums[UNIT] = {0};
  for (int64_t j = from; j < to; j++) {
    int64_t column = (j - from) / LANE_KEYS * 4 + i % LANE_ROWS * LANE_KEYS + (j - from) % LANE_KEYS;
    float logit = g->logit[i / LANE_ROWS][column];
    if (logit == -__builtin_inff()) continue;
    float distance = g->top[i] - logit;
    distance = distance < 2047.0f ? distance : 2047.0f;
    int32_t steps = (int32_t)round_to_step(distance, MAGIC);
    uint32_t power = (uint32_t)power_table[steps & 63] >> (steps >> 6);
    if (!has_rest) power = (power + 128) & ~255u;
    float p = a->sums_codes ? (float)power * REST_UNIT
                            : real_power_table[steps & 63] *
                                  float_of((127u - (uint32_t)(steps >> 6)) << 23);
    const float n = a->real_weight[key_place(a->units, j)];
    sums[(j - begin) % UNIT] += p * n;
  }
  for (int32_t half = UNIT / 2; half > 0; half /= 2)
    for (int32_t l = 0; l < half; l++) sums[l] += sums[l + half];
  return sums[0];
}

// tile_gain of R rows. A row that sees no key of the tile has top = -inf and keeps its reference.
INLINE void choose_gain(const int R, const intfa_attend_tiles *a, group *g, int32_t row,
                        const float32x4_t *tops) {
  float reference[ROWS] = {0};
  memcpy(reference, a->reference + row, sizeof(float) * R);
  UNROLL for (int i = 0; i < R; i++) {
    float32x4_t top = tops[i / LANE_ROWS];
    g->top[i] = LANE_ROWS == 1 ? vmaxnmvq_f32(top)
                               : vmaxnmv_f32(i % 2 ? vget_high_f32(top) : vget_low_f32(top));
  }
  UNROLL for (int i = 0; i < R; i += 4) {
    float32x4_t excess = vsubq_f32(vld1q_f32(g->top + i), vld1q_f32(reference + i));
    float32x4_t steps = vmaxnmq_f32(excess, vdupq_n_f32(SMALLEST_GAIN));
    vst1q_f32(g->whole.gain + i, exp2_x4(vmulq_f32(steps, vdupq_n_f32(1.0f / STEPS))));
  }
  for (int32_t i = 0; i < R; i++)
    if (__builtin_expect(g->top[i] - reference[i] > REFERENCE_SLACK, 0))
      g->whole.gain[i] = tile_gain(g->top[i], a->reference + row + i, a->total + row + i,
                                   a->out + (row + i) * a->out_stride, a->value_dimension);
}

// ---------------------------------------------------------------------------------- values

// out += gain * (p x values) for R rows and the keys [from, to).
INLINE void add_values(const int R, const intfa_attend_tiles *a, const weights *w, int32_t row,
                       int64_t from, int64_t to) {
  const int32_t width = (int32_t)padded(a->value_dimension, 8);
  KEEP_LOOP for (int32_t c = 0; c < width; c += 8) {
    int32x4_t sum[GROUPS][VECTORS];
    UNROLL for (int i = 0; i < R / LANE_ROWS; i++) {
      int32x4_t start = vreinterpretq_s32_f32(row_lanes(w->start + i * LANE_ROWS));
      UNROLL for (int v = 0; v < VECTORS; v++) sum[i][v] = start;
    }
    for (int64_t j = from, stop; j < to; j = stop) {
      stop = (j / INTFA_PACK_UNIT + 1) * INTFA_PACK_UNIT;
      stop = stop < to ? stop : to;
      const int64_t place = key_place(a->units, j);
      const int8_t *value = (const int8_t *)a->value + place * width + c * KEY_UNIT;
      KEEP_LOOP for (; j < stop; j += KEY_UNIT, value += width * KEY_UNIT)
        multiply_values(R, w->p[(j - from) / KEY_UNIT], value, sum);
    }
    UNROLL for (int i = 0; i < R / LANE_ROWS; i++) {
      float32x4_t rows[LANE_ROWS][2];
      separate(sum[i], rows);
      UNROLL for (int r = 0; r < LANE_ROWS; r++) {
        float *out = a->out + (row + i * LANE_ROWS + r) * a->out_stride + c;
        float32x4_t gain = vdupq_n_f32(w->gain[i * LANE_ROWS + r]);
        vst1q_f32(out, vaddq_f32(vld1q_f32(out), vmulq_f32(rows[r][0], gain)));
        vst1q_f32(out + 4, vaddq_f32(vld1q_f32(out + 4), vmulq_f32(rows[r][1], gain)));
      }
    }
  }
}

// ---------------------------------------------------------------------------------- the loop

// R rows against the tile [begin, end).
INLINE void attend_rows(const int R, const intfa_attend_tiles *a, state *s, int32_t row,
                        int64_t begin, int64_t end) {
  const int32_t last_row = row + R < a->rows ? row + R - 1 : a->rows - 1;
  const key_range first_seen = visible_keys(&a->visible, row, begin, end);
  const key_range last_seen = visible_keys(&a->visible, last_row, begin, end);
  if (first_seen.begin >= last_seen.end) return;
  if (a->mask && !mask_shows(a->mask, row, last_row + 1, first_seen.begin, last_seen.end)) return;
  const int64_t from = first_seen.begin / UNIT * UNIT, to = padded(last_seen.end, UNIT);
  group *g = &s->rows;
  float32x4_t top[GROUPS];
  UNROLL for (int i = 0; i < R / LANE_ROWS; i++) top[i] = vdupq_n_f32(-__builtin_inff());
  score(R, a, s, row, from, to, top);
  if (a->softcap > 0) cap_logits(a, g, row, R / LANE_ROWS, from, to, top);
  if (a->mask) add_mask(a, g, row, R / LANE_ROWS, begin, end, from, to, top);
  if (last_seen.begin > from || first_seen.end < to)
    mask_logits(a, g, row, R / LANE_ROWS, begin, end, from, to, top);
  choose_gain(R, a, g, row, top);
  const int8_t *n = s->weight + (from - begin / UNIT * UNIT);
  exponentials(R, g, s->mantissa, n, to - from);
  const bool has_rests = rests_in(a, row, last_row, begin);
  if (has_rests) add_rests(a, s, g, row, R, begin, n, to - from);
  for (int32_t i = 0; i < R; i++) {
    if (!a->weight)
      a->total[row + i] += g->whole.gain[i] * real_row_sum(a, g, row, i, begin, from, to);
    else if (has_rests)
      a->total[row + i] += g->rest.gain[i] * (float)(256 * g->whole.weighted[i] + g->rest.weighted[i]);
    else
      a->total[row + i] += g->whole.gain[i] * (float)g->whole.weighted[i];
  }
  add_values(R, a, &g->whole, row, from, to);
  if (has_rests) add_values(R, a, &g->rest, row, from, to);
}

INLINE int32_t rows_at_once(int32_t left) { return left >= ROWS ? ROWS : 2; }

static void prepare_rows(const intfa_attend_tiles *a, state *s) {
  const int32_t d = a->head_dimension, stride = (int32_t)padded(d, QUERY_PIECE);
  memset(s->query, 0, (size_t)(padded(a->rows, 2) * stride));
  memset(s->weight, 0, sizeof s->weight);
  for (int32_t i = 0; i < 64; i++) {
    s->mantissa[i] = (uint8_t)(power_table[i] >> 7);
    s->high[i] = (uint8_t)(power_table[i] >> 8);
    s->low[i] = (uint8_t)power_table[i];
  }
  for (int32_t row = 0, count; row < a->rows; row += count) {
    count = rows_at_once(a->rows - row);
    int8_t *target = s->query + (int64_t)row * stride;
    for (int32_t r = 0; r < count; r++) {
      const bool exists = row + r < a->rows;
      for (int32_t lane = 0; lane < 4; lane++)
        if (lane_row(lane) == r % LANE_ROWS)
          s->scale[(row + r) / LANE_ROWS * 4 + lane] = exists ? a->query_scale[row + r] : 0;
      for (int32_t c = 0; exists && c < d; c += QUERY_PIECE)
        memcpy(target + c * count + r * QUERY_PIECE, a->query + (int64_t)(row + r) * d + c,
               (size_t)(d - c < QUERY_PIECE ? d - c : QUERY_PIECE));
    }
  }
}

static void attend_tiles(const intfa_attend_tiles *a) {
  state *s = a->scratch;
  prepare_rows(a, s);
  for (int64_t begin = a->key_begin, end; begin < a->key_end; begin = end) {
    end = tile_end(begin, a->key_end, a->first_tile, a->tile);
    if (a->weight) order_weights(a, begin, end, s->weight);
    for (int32_t row = 0, count; row < a->rows; row += count) {
      count = rows_at_once(a->rows - row);
      if (count == ROWS)
        attend_rows(ROWS, a, s, row, begin, end);
      else
        attend_rows(2, a, s, row, begin, end);
    }
  }
}
