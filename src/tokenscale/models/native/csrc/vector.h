// Vectors of 16 floats, which the compiler maps to what the processor has.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

typedef float vec __attribute__((vector_size(64)));
typedef float vec_in_memory __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2), may_alias));

struct bf16 {
  uint16_t bits;
};

constexpr int LANES = 16;
// Four weight rows times as many inputs are summed in registers; only AVX-512 has room for 16 sums.
#ifdef __AVX512F__
constexpr int INPUTS = 4;
#else
constexpr int INPUTS = 1;
#endif

static inline vec load(const float* p) { return *reinterpret_cast<const vec_in_memory*>(p); }

static inline vec load(const bf16* p) {
  words wide = __builtin_convertvector(*reinterpret_cast<const halves*>(p), words);
  return (vec)(wide << 16);
}

static inline float value(float x) { return x; }

static inline float value(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

static inline void store(float* p, vec v) { *reinterpret_cast<vec_in_memory*>(p) = v; }

static inline void put(float* p, float x) { *p = x; }

// Rounds to the nearest, ties to even, as torch does.
static inline void put(bf16* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  p->bits = x != x ? 0x7FC0 : uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Keeps the compiler from loading a value again for each of its uses.
static inline void in_register(vec& v) {
#ifdef __AVX512F__
  asm("" : "+v"(v));
#endif
}

static inline vec all(float x) { return x - (vec){}; }

// sums[i] = the sum of the lanes of v[i], for 16 vectors, each in the same order.
static inline vec sums(const vec* v) {
  const ints low1 = {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30};
  const ints high1 = {1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31};
  const ints low2 = {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29};
  const ints high2 = {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31};
  const ints low4 = {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27};
  const ints high4 = {4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31};
  const ints low8 = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23};
  const ints high8 = {8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31};
  vec a[8], b[4], c[2];
  for (int i = 0; i < 8; i++)
    a[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], low1) + __builtin_shuffle(v[2 * i], v[2 * i + 1], high1);
  for (int i = 0; i < 4; i++)
    b[i] = __builtin_shuffle(a[2 * i], a[2 * i + 1], low2) + __builtin_shuffle(a[2 * i], a[2 * i + 1], high2);
  for (int i = 0; i < 2; i++)
    c[i] = __builtin_shuffle(b[2 * i], b[2 * i + 1], low4) + __builtin_shuffle(b[2 * i], b[2 * i + 1], high4);
  return __builtin_shuffle(c[0], c[1], low8) + __builtin_shuffle(c[0], c[1], high8);
}

static inline vec smaller(vec a, vec b) { return a < b ? a : b; }
static inline vec larger(vec a, vec b) { return a > b ? a : b; }

static inline float largest(vec v) {
  float out = v[0];
  for (int i = 1; i < LANES; i++) out = v[i] > out ? v[i] : out;
  return out;
}

static inline float total(vec v) {
  float lanes[LANES];
  store(lanes, v);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

// NaN stays NaN: of two numbers that do not compare, smaller and larger give the second.
// e^x: x = n ln 2 + r, with |r| <= ln 2 / 2, and the Taylor series of e^r to r^7 (relative error below 1e-7).
static inline vec exp(vec x) {
  x = smaller(all(88.0f), larger(all(-87.0f), x));
  vec scaled = x * 1.44269504f;
  ints n = __builtin_convertvector(scaled + (scaled < 0.0f ? all(-0.5f) : all(0.5f)), ints);
  vec k = __builtin_convertvector(n, vec);
  vec r = x - k * 0.693359375f + k * 2.12194440e-4f;
  vec p = all(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * (vec)((n + 127) << 23);
}
