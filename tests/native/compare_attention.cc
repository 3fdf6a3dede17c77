// Attention over stored blocks, and the merge of partial results, against the generic table.
//
// Owns: the tolerances (what rounding queries and probabilities to a format's grid costs; the generic table keeps both
// in f32), that a row has the same bits beside any others, and that slots which no row sees are never used.
#include <vector>

#include "compare_tables.h"

namespace compare {
namespace {

constexpr int64_t most_rows = 20;
constexpr const char* kv_names[] = {"kv f32", "kv bf16", "kv int8"};

struct Views {
    int32_t lo[most_rows], hi[most_rows];
};

// Random views within the slots [first, last), and the ends: all, nothing, the first slot, the last one.
Views views_in(int32_t first, int32_t last, Random& random) {
    Views views;
    for (int64_t r = 0; r < most_rows; ++r) {
        views.lo[r] = first + static_cast<int32_t>(random.below(last - first));
        views.hi[r] = views.lo[r] + static_cast<int32_t>(random.below(last - views.lo[r] + 1));
    }
    const int32_t ends[4][2] = {{first, last}, {first, first}, {first, first + 1}, {last - 1, last}};
    for (int64_t i = 0; i < 8; ++i) {
        views.lo[2 * i] = ends[i % 4][0];
        views.hi[2 * i] = ends[i % 4][1];
    }
    return views;
}

struct Partial {
    Partial(int64_t rows, int64_t head_dim)
        : padded(head_dim_padded(head_dim)), m(rows, 0xff), l(rows, 0xff), acc(rows * padded, 0xff) {}
    int64_t padded;
    Aligned<float> m, l, acc;
};

struct Block {
    Block(const KernelTable& table, KvFormat format, int64_t head_dim, int fill)
        : kernel(table.kv[static_cast<int>(format)]), memory(kv_block_bytes(format, head_dim), fill) {}
    void store(float* k, float* v, int64_t head_dim, int64_t first, int64_t last) {
        for (int64_t slot = first; slot < last; ++slot)
            kernel.store(k + slot * head_dim, v + slot * head_dim, head_dim, slot, memory.data());
    }
    const KvKernel& kernel;
    Aligned<uint8_t> memory;
};

Partial attend(const KvKernel& kernel, float* q, int64_t rows, const Block& block, const Block* next, int64_t head_dim,
               const Views& views, int64_t first_row, float softcap) {
    const float scale = 1.5f / std::sqrt(static_cast<float>(head_dim));
    Aligned<uint8_t> query(rows * kernel.query_bytes(head_dim), 0xff);
    for (int64_t r = 0; r < rows; ++r)
        kernel.query_prepare(q + (first_row + r) * head_dim, head_dim, scale,
                             query.data() + r * kernel.query_bytes(head_dim));
    Partial out(rows, head_dim);
    kernel.attend(query.data(), rows, block.memory.data(), next != nullptr ? next->memory.data() : nullptr, head_dim,
                  views.lo + first_row, views.hi + first_row, softcap, out.m.data(), out.l.data(), out.acc.data());
    return out;
}

bool row_has_same_bits(const Partial& a, int64_t row_a, const Partial& b, int64_t row_b) {
    return std::memcmp(a.m.data() + row_a, b.m.data() + row_b, sizeof(float)) == 0 &&
           std::memcmp(a.l.data() + row_a, b.l.data() + row_b, sizeof(float)) == 0 &&
           std::memcmp(a.acc.data() + row_a * a.padded, b.acc.data() + row_b * b.padded,
                       static_cast<size_t>(a.padded) * sizeof(float)) == 0;
}

// A score's error moves m, l and acc together, so l and acc are compared as if m were equal. any_m: m may be any that
// is near the largest score.
void check_near(Line& line, const Partial& got, const Partial& want, int64_t rows, double limit, bool any_m,
                int64_t which) {
    for (int64_t r = 0; r < rows; ++r) {
        const float m = want.m.data()[r], l = want.l.data()[r];
        if (!any_m)
            line.near(got.m.data()[r], m, 2 * limit * std::max(1.0, std::fabs(static_cast<double>(m))), which, r);
        const bool sees = l > 0;
        line.hash(got.l.data() + r, 1);
        line.hash(got.acc.data() + r * got.padded, got.padded);
        const double shift = sees ? std::exp(static_cast<double>(got.m.data()[r]) - static_cast<double>(m)) : 1.0;
        const double unit = sees ? static_cast<double>(l) : 1.0;
        line.within(static_cast<double>(got.l.data()[r]) * shift, static_cast<double>(l), limit * unit, which, r);
        for (int64_t d = 0; d < got.padded; ++d) {
            const int64_t at = r * got.padded + d;
            const double value = static_cast<double>(got.acc.data()[at]) * shift / unit;
            const double right = static_cast<double>(want.acc.data()[at]) / unit;
            line.within(value, right, sees ? limit : 0.0, which, r);
        }
    }
}

double limit_of(const KernelTable& table, KvFormat format) {
    if (format == KvFormat::int8) return 8e-3;
    return format == KvFormat::bf16 && std::strcmp(table.name, "avx512") == 0 ? 1e-2 : 3e-6;
}

// Queries on the grid of int8, which the generic kernel does not round to.
void snap(float* q, int64_t rows, int64_t head_dim) {
    for (int64_t r = 0; r < rows; ++r, q += head_dim) {
        float largest = 0.0f;
        for (int64_t d = 0; d < head_dim; ++d) largest = std::max(largest, std::fabs(q[d]));
        for (int64_t d = 0; d < head_dim; ++d) q[d] = std::rint(q[d] * (127.0f / largest)) * (largest / 127.0f);
    }
}

// Keys and values stay within [-1, 1), queries within [-1.5, 1.5): the tolerances are for that.
void check_block(Line& stored, Line& attended, const KernelTable& table, KvFormat format, int64_t head_dim) {
    Random random(static_cast<uint64_t>(head_dim));
    Floats q(most_rows * head_dim, 1, 1.5f), k(kv_block * head_dim, 2, 1.0f), v(kv_block * head_dim, 3, 1.0f);
    if (format == KvFormat::int8) snap(q.data(), most_rows, head_dim);
    Block mine(table, format, head_dim, 0xff), theirs(generic(), format, head_dim, 0xff);
    mine.store(k.data(), v.data(), head_dim, 0, kv_block);
    theirs.store(k.data(), v.data(), head_dim, 0, kv_block);
    stored.same_bytes(mine.memory.data(), theirs.memory.data(), mine.memory.bytes(), head_dim);
    stored.expect(mine.kernel.query_bytes(head_dim) % 64 == 0, "query_bytes is no multiple of 64");
    const Views views = views_in(0, kv_block, random);
    for (const float softcap : {0.0f, 20.0f}) {
        const Partial all = attend(mine.kernel, q.data(), most_rows, mine, &theirs, head_dim, views, 0, softcap);
        const Partial want = attend(theirs.kernel, q.data(), most_rows, theirs, nullptr, head_dim, views, 0, softcap);
        check_near(attended, all, want, most_rows, limit_of(table, format), format == KvFormat::int8, head_dim);
        for (int64_t rows = 1; rows <= most_rows; rows += head_dim <= 96 ? 1 : 6) {
            const int64_t first = random.below(most_rows - rows + 1);
            const Partial some = attend(mine.kernel, q.data(), rows, mine, nullptr, head_dim, views, first, softcap);
            for (int64_t r = 0; r < rows; ++r)
                attended.expect(row_has_same_bits(some, r, all, first + r),
                                "head_dim %lld: row %lld among %lld differs from the same among 20",
                                static_cast<long long>(head_dim), static_cast<long long>(first + r),
                                static_cast<long long>(rows));
        }
    }
}

void check_unseen_slots(Line& line, const KernelTable& table, KvFormat format, int64_t head_dim) {
    Random random(5);
    Floats q(most_rows * head_dim, 1, 1.5f), k(kv_block * head_dim, 2, 1.0f), v(kv_block * head_dim, 3, 1.0f);
    const int32_t ranges[][2] = {{0, 1}, {0, 5}, {7, 8}, {13, 43}, {33, 64}, {62, 64}};
    for (const auto& range : ranges) {
        const Views views = views_in(range[0], range[1], random);
        Block clean(table, format, head_dim, 0), dirty(table, format, head_dim, 0xff);
        clean.store(k.data(), v.data(), head_dim, range[0], range[1]);
        dirty.store(k.data(), v.data(), head_dim, range[0], range[1]);
        const Partial a = attend(clean.kernel, q.data(), most_rows, clean, nullptr, head_dim, views, 0, 0.0f);
        const Partial b = attend(dirty.kernel, q.data(), most_rows, dirty, nullptr, head_dim, views, 0, 0.0f);
        for (int64_t r = 0; r < most_rows; ++r)
            line.expect(row_has_same_bits(a, r, b, r), "slots outside %d..%d are used", range[0], range[1]);
    }
}

// A NaN or an infinity in q, k or v must not vanish.
void check_broken_values(Line& line, const KernelTable& table, KvFormat format) {
    constexpr int64_t head_dim = 64;
    Views views = {};
    views.hi[0] = kv_block;
    for (int where = 0; where < 3; ++where)
        for (const float bad : {NAN, infinity}) {
            Floats q(head_dim, 1), k(kv_block * head_dim, 2), v(kv_block * head_dim, 3);
            q[3] = 1;
            (where == 0 ? q : where == 1 ? k : v)[3] = bad;
            Block block(table, format, head_dim, 0);
            block.store(k.data(), v.data(), head_dim, 0, kv_block);
            Partial out = attend(block.kernel, q.data(), 1, block, nullptr, head_dim, views, 0, 0.0f);
            bool finite = true;
            for (int64_t d = 0; d < head_dim; ++d) finite = finite && std::isfinite(out.acc[d] / out.l[0]);
            line.expect(!finite, "a broken value in %s vanished", where == 0 ? "q" : where == 1 ? "k" : "v");
        }
}

bool compare_kv(const KernelTable& table, KvFormat format) {
    char store_name[32], attend_name[32];
    std::snprintf(store_name, sizeof store_name, "%s store", kv_names[static_cast<int>(format)]);
    std::snprintf(attend_name, sizeof attend_name, "%s attend", kv_names[static_cast<int>(format)]);
    Line stored(table, store_name), attended(table, attend_name);
    for (const int64_t head_dim : {2, 18, 64, 80, 96, 128, 256}) check_block(stored, attended, table, format, head_dim);
    for (const int64_t head_dim : {18, 64}) check_unseen_slots(attended, table, format, head_dim);
    check_broken_values(attended, table, format);
    const bool right = stored.finish();
    return attended.finish() && right;
}

// Which parts saw something: bit 0 the running one, bit 1 the added one.
void check_merge(Line& line, const KernelTable& table, int64_t head_dim, int seen, float m_other) {
    const int64_t padded = head_dim_padded(head_dim);
    const bool left = (seen & 1) != 0, right = (seen & 2) != 0;
    Floats acc(padded, 1), other(padded, 2), want(padded, 1);
    float m = left ? 1.5f : -infinity, l = left ? 7.0f : 0.0f, want_m = m, want_l = l;
    const float m2 = right ? m_other : -infinity, l2 = right ? 11.0f : 0.0f;
    if (!left) std::fill(acc.data(), acc.data() + padded, 0.0f);
    if (!right) std::fill(other.data(), other.data() + padded, 0.0f);
    std::copy(acc.data(), acc.data() + padded, want.data());
    table.attend_merge(&m, &l, acc.data(), &m2, &l2, other.data(), 1, head_dim);
    generic().attend_merge(&want_m, &want_l, want.data(), &m2, &l2, other.data(), 1, head_dim);
    line.near(m, want_m, 0.0, head_dim, seen);
    line.near(l, want_l, seen == 3 ? 2e-6 * static_cast<double>(want_l) : 0.0, head_dim, seen);
    for (int64_t d = 0; d < padded; ++d) line.near(acc[d], want[d], seen == 3 ? 3e-6 : 0.0, head_dim, seen);
    line.expect(acc[padded] == guard, "wrote behind acc");
}

}  // namespace

bool all_attention(const KernelTable& table) {
    bool right = true;
    for (const KvFormat format : {KvFormat::f32, KvFormat::bf16, KvFormat::int8})
        right = compare_kv(table, format) && right;
    Line merged(table, "attend_merge");
    for (const int64_t head_dim : {2, 48, 80, 256})
        for (int seen = 0; seen < 4; ++seen)
            for (const float m_other : {1.5f, 0.25f, 4.0f, -80.0f, 200.0f})
                check_merge(merged, table, head_dim, seen, m_other);
    return merged.finish() && right;
}

}  // namespace compare
