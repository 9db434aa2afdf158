// Attention of query rows over shared segments and tails, merged by log-sum-exp.
//
// A segment's keys and values are read once for all sequences that share it. Each of its readers gets a
// partial result (the largest score m, l = sum of e^(s - m), o = sum of e^(s - m) v); a tail, with the
// key of the row's own token, is one more. out = sum_j e^(m_j - M) o_j / sum_j e^(m_j - M) l_j.
#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "products.h"

extern "C" struct Attention {
  const void* q;                                   // [batch, heads, rows, dim], strides below, in elements
  int64_t q_batch, q_head, q_row;
  void *tail_keys, *tail_values;                   // [batch, kv_heads, columns, dim] and [..., value_dim]
  int64_t key_batch, key_head, key_column, value_batch, value_head, value_column;
  const int64_t* tail_first;                       // [batch]: a sequence's first visible column
  int64_t tail_end;                                // past columns end here
  const void *own_keys, *own_values;               // of the current token: [batch, kv_heads, rows, dim]
  int64_t own_key_batch, own_key_head, own_key_row, own_value_batch, own_value_head, own_value_row;
  int64_t own_step;                                // row i sees the own key i own_step; -1: none
  int64_t stored;                                  // the column that row 0's key and value are stored in; -1: none
  int64_t segments;                                // readings of segments
  const void* const* segment_keys;                 // [segments]: [kv_heads, length, dim], contiguous
  const void* const* segment_values;
  const int64_t *segment_length, *segment_begin, *segment_end;  // [segments]: tokens stored, visible from ... to
  const int64_t* reader_first;                     // [segments + 1], into `readers`
  const int64_t* readers;                          // sequences that read a segment
  const int64_t* part_first;                       // [batch + 1], into `parts`
  const int64_t* parts;                            // per sequence, places in `readers`, from root to leaf
  const float* sinks;                              // [heads] or null: a logit that takes part in the sum only
  void* out;                                       // [batch, rows, heads, value_dim]
  int64_t batch, heads, kv_heads, rows, dim, value_dim;
  double scale, softcap;                           // softcap 0: none
  int64_t half, threads;
};

namespace {

constexpr int KEYS = 64, QUERIES = 32;

struct Partial {
  float* o;
  float *m, *l;
};

inline float exp1(float x) { return exp(all(x))[0]; }

// o[q] = o[q] * scale[q] + sum over keys of p[q][key] v[key], for Q queries and V vectors of values.
template <int Q, int V, typename T>
inline void weigh(const T* v, ptrdiff_t stride, int keys, const float (*p)[KEYS], const Partial* parts, const float* scale,
                  int at) {
  vec acc[Q * V];
  for (int q = 0; q < Q; q++)
    for (int j = 0; j < V; j++) acc[q * V + j] = load(parts[q].o + at + j * LANES) * scale[q];
  for (int k = 0; k < keys; k++) {
    vec values[V];
    for (int j = 0; j < V; j++) values[j] = load(v + k * stride + at + j * LANES);
    for (int q = 0; q < Q; q++)
      for (int j = 0; j < V; j++) acc[q * V + j] += values[j] * p[q][k];
  }
  for (int q = 0; q < Q; q++)
    for (int j = 0; j < V; j++) store(parts[q].o + at + j * LANES, acc[q * V + j]);
}

template <int V, typename T>
inline void weigh_all(const T* v, ptrdiff_t stride, int keys, const float (*p)[KEYS], const Partial* parts,
                      const float* scale, int count, int at) {
  int q = 0;
  for (; q + 4 <= count; q += 4) weigh<4, V>(v, stride, keys, p + q, parts + q, scale + q, at);
  for (; q < count; q++) weigh<1, V>(v, stride, keys, p + q, parts + q, scale + q, at);
}

template <typename T>
void weigh_values(const T* v, ptrdiff_t stride, int keys, const float (*p)[KEYS], const Partial* parts,
                  const float* scale, int count, int dim) {
  int at = 0;
  for (; at + 4 * LANES <= dim; at += 4 * LANES) weigh_all<4>(v, stride, keys, p, parts, scale, count, at);
  for (; at + LANES <= dim; at += LANES) weigh_all<1>(v, stride, keys, p, parts, scale, count, at);
  for (; at < dim; at++)
    for (int q = 0; q < count; q++) {
      float sum = parts[q].o[at] * scale[q];
      for (int k = 0; k < keys; k++) sum += p[q][k] * value(v[k * stride + at]);
      parts[q].o[at] = sum;
    }
}

// Turns scores into weights e^(s - m), and moves the running maximum and sum; what is old counts `scale` times.
inline void soften(float* scores, int keys, float softcap, Partial part, float* scale) {
  for (int k = keys; k < KEYS; k++) scores[k] = -INFINITY;
  vec most = all(-INFINITY);
  for (int k = 0; k < KEYS; k += LANES) {
    vec s = load(scores + k);
    if (softcap != 0) s = softcap - 2 * softcap / (exp(s * (2 / softcap)) + 1.0f);
    store(scores + k, s);
  }
  for (int k = keys; k < KEYS; k++) scores[k] = -INFINITY;
  for (int k = 0; k < KEYS; k += LANES) most = larger(most, load(scores + k));
  float m = std::max(*part.m, largest(most));
  vec sum = all(0);
  for (int k = 0; k < KEYS; k += LANES) {
    vec p = exp(load(scores + k) - m);
    store(scores + k, p);
    sum += p;
  }
  *scale = *part.l == 0 ? 0 : exp1(*part.m - m);
  *part.l = *part.l * *scale + total(sum);
  *part.m = m;
}

// Adds `keys` keys, at most KEYS, to the partial results of `count` queries.
template <typename T>
void attend_block(const T* k, ptrdiff_t k_stride, const T* v, ptrdiff_t v_stride, int keys,
                  const float* const* queries, const Partial* parts, int64_t count, const Attention& a) {
  float scores[QUERIES][KEYS], scale[QUERIES];
  float* rows[QUERIES];
  for (int q = 0; q < QUERIES; q++) rows[q] = scores[q];
  for (int64_t first = 0; first < count; first += QUERIES) {
    const int some = int(std::min<int64_t>(QUERIES, count - first));
    int key = 0;
    for (; key + 4 <= keys; key += 4)
      row_block<4>(k + key * k_stride, k_stride, queries + first, some, int(a.dim), rows, key);
    for (; key < keys; key++)
      row_block<1>(k + key * k_stride, k_stride, queries + first, some, int(a.dim), rows, key);
    for (int q = 0; q < some; q++) soften(scores[q], keys, float(a.softcap), parts[first + q], scale + q);
    weigh_values(v, v_stride, keys, scores, parts + first, scale, some, int(a.value_dim));
  }
}

template <typename T>
inline void widen(const T* from, ptrdiff_t stride, int rows, int64_t dim, float* to) {
  for (int r = 0; r < rows; r++)
    for (int64_t d = 0; d < dim; d++) to[r * dim + d] = value(from[r * stride + d]);
}

// Adds keys begin ... end - 1 of one head to the partial results of `count` queries.
template <typename T>
void attend(const T* k, ptrdiff_t k_stride, const T* v, ptrdiff_t v_stride, int64_t begin, int64_t end,
            const float* const* queries, const Partial* parts, int64_t count, const Attention& a,
            std::vector<float>& wide) {
  // Many queries would each turn half-precision keys into floats.
  const bool widens = sizeof(T) == 2 && count > INPUTS;
  if (widens) wide.resize(KEYS * (a.dim + a.value_dim));
  for (int64_t at = begin; at < end; at += KEYS) {
    const int keys = int(std::min<int64_t>(KEYS, end - at));
    const T *here = k + at * k_stride, *values = v + at * v_stride;
    prefetch(here + KEYS * k_stride, KEYS * k_stride);
    if (!widens) {
      attend_block(here, k_stride, values, v_stride, keys, queries, parts, count, a);
      continue;
    }
    float *wide_keys = wide.data(), *wide_values = wide_keys + KEYS * a.dim;
    widen(here, k_stride, keys, a.dim, wide_keys);
    widen(values, v_stride, keys, a.value_dim, wide_values);
    attend_block(wide_keys, a.dim, wide_values, a.value_dim, keys, queries, parts, count, a);
  }
}

template <typename T>
struct Run {
  const Attention& a;
  std::vector<float> q, o, m, l;

  explicit Run(const Attention& a)
      : a(a), q(a.batch * a.heads * a.rows * a.dim), o((count()) * a.heads * a.rows * a.value_dim, 0.0f),
        m(count() * a.heads * a.rows, -INFINITY), l(count() * a.heads * a.rows, 0.0f) {
    for (int64_t b = 0; b < a.batch; b++)
      for (int64_t h = 0; h < a.heads; h++)
        for (int64_t r = 0; r < a.rows; r++) {
          const T* from = (const T*)a.q + b * a.q_batch + h * a.q_head + r * a.q_row;
          float* to = &q[((b * a.heads + h) * a.rows + r) * a.dim];
          for (int64_t d = 0; d < a.dim; d++) to[d] = value(from[d]) * float(a.scale);
        }
  }

  // Partial results: one per reader of a segment, then one per tail.
  int64_t count() const { return a.reader_first[a.segments] + a.batch; }

  Partial part(int64_t place, int64_t head, int64_t row) {
    int64_t i = (place * a.heads + head) * a.rows + row;
    return {&o[i * a.value_dim], &m[i], &l[i]};
  }

  // The queries of sequence b that share a key head, and where their results go.
  void list(int64_t b, int64_t kv_head, int64_t place, std::vector<const float*>& queries, std::vector<Partial>& parts) {
    int64_t group = a.heads / a.kv_heads;
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; h++)
      for (int64_t r = 0; r < a.rows; r++) {
        queries.push_back(&q[((b * a.heads + h) * a.rows + r) * a.dim]);
        parts.push_back(part(place, h, r));
      }
  }

  void segment(int64_t s, int64_t head, std::vector<const float*>& queries, std::vector<Partial>& parts,
               std::vector<float>& wide) {
    for (int64_t i = a.reader_first[s]; i < a.reader_first[s + 1]; i++) list(a.readers[i], head, i, queries, parts);
    int64_t length = a.segment_length[s];
    attend((const T*)a.segment_keys[s] + head * length * a.dim, a.dim,
           (const T*)a.segment_values[s] + head * length * a.value_dim, a.value_dim, a.segment_begin[s],
           a.segment_end[s], queries.data(), parts.data(), int64_t(queries.size()), a, wide);
  }

  void tail(int64_t b, int64_t head, std::vector<const float*>& queries, std::vector<Partial>& parts,
            std::vector<float>& wide) {
    list(b, head, a.reader_first[a.segments] + b, queries, parts);
    if (a.own_step >= 0) {
      const T* k = (const T*)a.own_keys + b * a.own_key_batch + head * a.own_key_head;
      const T* v = (const T*)a.own_values + b * a.own_value_batch + head * a.own_value_head;
      for (size_t i = 0; i < queries.size(); i++) {
        int64_t row = int64_t(i) % a.rows * a.own_step;
        begin(queries[i], parts[i], k + row * a.own_key_row, v + row * a.own_value_row);
      }
    }
    const T* k = (const T*)a.tail_keys + b * a.key_batch + head * a.key_head;
    const T* v = (const T*)a.tail_values + b * a.value_batch + head * a.value_head;
    attend(k, a.key_column, v, a.value_column, a.tail_first[b], a.tail_end, queries.data(), parts.data(),
           int64_t(queries.size()), a, wide);
  }

  // The attention over one key: m is its score, l = 1, o its value.
  void begin(const float* query, Partial part, const T* k, const T* v) {
    float score = 0;
    float* out = &score;
    dots<1, 1>(k, 0, &query, int(a.dim), &out, 0);
    if (a.softcap != 0) {
      float cap = float(a.softcap);
      score = cap - 2 * cap / (exp1(score * (2 / cap)) + 1.0f);
    }
    *part.m = score, *part.l = 1;
    for (int64_t d = 0; d < a.value_dim; d++) part.o[d] = value(v[d]);
  }

  // Row 0's key and value become the last of the tail.
  void keep(int64_t b, int64_t head) {
    const T* k = (const T*)a.own_keys + b * a.own_key_batch + head * a.own_key_head;
    const T* v = (const T*)a.own_values + b * a.own_value_batch + head * a.own_value_head;
    T* to = (T*)a.tail_keys + b * a.key_batch + head * a.key_head + a.stored * a.key_column;
    std::copy(k, k + a.dim, to);
    to = (T*)a.tail_values + b * a.value_batch + head * a.value_head + a.stored * a.value_column;
    std::copy(v, v + a.value_dim, to);
  }

  void merge(int64_t b, int64_t head, int64_t row) {
    const int64_t first = a.part_first[b], count = a.part_first[b + 1] - first;
    auto at = [&](int64_t i) { return part(i < count ? a.parts[first + i] : a.reader_first[a.segments] + b, head, row); };
    float most = a.sinks ? a.sinks[head] : -INFINITY, sum = 0;
    for (int64_t i = 0; i <= count; i++) most = std::max(most, *at(i).m);
    if (a.sinks) sum = exp1(a.sinks[head] - most);
    // The first part's memory takes the sum of all.
    float* found = at(0).o;
    for (int64_t i = 0; i <= count; i++) {
      const Partial p = at(i);
      const float scale = *p.l == 0 ? 0 : exp1(*p.m - most);
      sum += scale * *p.l;
      for (int64_t d = 0; d < a.value_dim; d++) found[d] = (i ? found[d] : 0) + scale * p.o[d];
    }
    T* out = (T*)a.out + ((b * a.rows + row) * a.heads + head) * a.value_dim;
    for (int64_t d = 0; d < a.value_dim; d++) put(out + d, found[d] / sum);
  }

  // Whether memory sufficed. What a thread throws must not leave its parallel region.
  bool operator()() {
    int failed = 0;
    for (int64_t u = 0; a.stored >= 0 && u < a.batch * a.kv_heads; u++) keep(u / a.kv_heads, u % a.kv_heads);
    const int64_t reads = a.segments * a.kv_heads, units = reads + a.batch * a.kv_heads;
#pragma omp parallel num_threads(int(a.threads)) if (a.threads > 1)
    {
      std::vector<const float*> queries;
      std::vector<Partial> parts;
      std::vector<float> wide;
#pragma omp for schedule(dynamic, 1)
      for (int64_t u = 0; u < units; u++) {
        queries.clear(), parts.clear();
        try {
          if (u < reads)
            segment(u / a.kv_heads, u % a.kv_heads, queries, parts, wide);
          else
            tail((u - reads) / a.kv_heads, (u - reads) % a.kv_heads, queries, parts, wide);
        } catch (const std::bad_alloc&) {
#pragma omp atomic write
          failed = 1;
        }
      }
#pragma omp for schedule(static)
      for (int64_t u = 0; u < a.batch * a.heads * a.rows; u++)
        merge(u / (a.heads * a.rows), u / a.rows % a.heads, u % a.rows);
    }
    return !failed;
  }
};

}  // namespace

// Gives 1 where memory runs out, else 0.
extern "C" int tokenscale_attention(const Attention* a) try {
  return a->half ? !Run<bf16>{*a}() : !Run<float>{*a}();
} catch (const std::bad_alloc&) {
  return 1;
}
