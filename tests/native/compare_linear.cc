// Matrix products, prepared rows and lookups of every weight format against the generic table.
//
// Owns: the shapes (ragged K, 1 to 20 rows, every cut of the tiles), extreme values, and the one tolerance: bf16 where
// vdpbf16ps rounds pairs in its own way. All else has the same bits.
#include <vector>

#include "compare_tables.h"

namespace compare {
namespace {

const char* format_name(Format f) { return format_traits[static_cast<int>(f)].name; }
const LinearKernel& linear(const KernelTable& table, Format f) { return table.linear[static_cast<int>(f)]; }

Tiles tiles_of(Format format, const Aligned<uint8_t>& weights, int64_t tiles, int64_t k, int64_t first = 0) {
    return tiles_at(format, weights.data(), tiles, k, first);
}

uint16_t random_half(Random& random) {  // finite, both signs, denormals too
    return static_cast<uint16_t>(random.below(2) << 15 | random.below(16) << 10 | random.below(1024));
}

Aligned<uint8_t> random_weights(Format format, int64_t tiles, int64_t k) {
    const FormatTraits& traits = format_traits[static_cast<int>(format)];
    Aligned<uint8_t> weights(tiles * tile_bytes(format, k));
    Random random(static_cast<uint64_t>(tiles * 1000 + k));
    for (int64_t i = 0; i < weights.bytes(); i += 4) {
        const float value = random.uniform();
        const uint32_t anything = static_cast<uint32_t>(random.next());
        std::memcpy(weights.data() + i, format == Format::f32 ? static_cast<const void*>(&value) : &anything, 4);
    }
    if (format == Format::int8_split) {
        uint8_t* upper = const_cast<uint8_t*>(static_cast<const uint8_t*>(tiles_of(format, weights, tiles, k).first));
        for (; upper < weights.data() + weights.bytes(); upper += sizeof(block_split_upper))
            for (int64_t i = 0; i < tile_channels; ++i) {
                const uint16_t half = random_half(random);
                std::memcpy(upper + 2 * i, &half, sizeof half);
            }
        for (int64_t i = 0; i < tiles * tile_channels; ++i) {
            const float radius = 1.0f + random.uniform();
            std::memcpy(weights.data() + 4 * i, &radius, sizeof radius);
        }
        return weights;
    }
    const int64_t halves = format == Format::int4 ? 2 * tile_channels : format == Format::int8 ? tile_channels : 0;
    for (int64_t at = 0; at < weights.bytes(); at += traits.block_bytes) {
        for (int64_t i = 0; i < halves; ++i) {
            const uint16_t half = random_half(random);
            std::memcpy(weights.data() + at + 2 * i, &half, sizeof half);
        }
        if (format != Format::bf16) continue;
        for (int64_t i = 0; i < 2 * tile_channels; ++i) {
            const uint32_t bits = bits_of(random.uniform());
            std::memcpy(weights.data() + at + 2 * i, reinterpret_cast<const char*>(&bits) + 2, 2);  // little-endian
        }
    }
    return weights;
}

Aligned<uint8_t> prepared(const LinearKernel& kernel, float* x, int64_t m, int64_t k) {
    Aligned<uint8_t> rows(m * kernel.act_bytes(k));
    for (int64_t r = 0; r < m; ++r) kernel.act_prepare(x + r * k, k, rows.data() + r * kernel.act_bytes(k));
    return rows;
}

// What the rounding of a product is measured by: the same product of the magnitudes. (bf16 only.)
std::vector<float> magnitudes(const Aligned<uint8_t>& weights, int64_t tiles, int64_t k, Floats& x, int64_t m) {
    Aligned<uint8_t> positive(weights.bytes());
    for (int64_t i = 0; i < weights.bytes(); ++i) positive[i] = weights.data()[i] & (i % 2 == 1 ? 0x7f : 0xff);
    Floats sizes_of_x(m * k);
    for (int64_t i = 0; i < m * k; ++i) sizes_of_x[i] = std::fabs(x[i]);
    std::vector<float> out(static_cast<size_t>(m * tiles * tile_channels));
    const LinearKernel& kernel = linear(generic(), Format::bf16);
    kernel.product(positive.data(), tiles, k, prepared(kernel, sizes_of_x.data(), m, k).data(), m, out.data(),
                   tiles * tile_channels);
    return out;
}

bool compare_act_prepare(const KernelTable& table, Format format) {
    char name[32];
    std::snprintf(name, sizeof name, "%s act_prepare", format_name(format));
    Line line(table, name);
    const LinearKernel &kernel = linear(table, format), &reference = linear(generic(), format);
    const float odd_values[] = {NAN, infinity, -infinity, 1e-39f, 3.4e38f, -0.0f, 1e-35f, 2e-35f, 126.5f, 127.0f};
    for (const int64_t k : {1, 5, 31, 32, 33, 63, 100, 256, 257, 576}) {
        line.expect(kernel.act_bytes(k) == reference.act_bytes(k), "act_bytes(%lld)", static_cast<long long>(k));
        for (int64_t which = -1; which < 10; ++which) {
            Floats x(k, static_cast<uint64_t>(which + 2), which == 9 ? 127.0f : 4.0f);
            if (which == 9)  // halves of a step: ties
                for (int64_t i = 0; i < k; ++i) x[i] = std::floor(x[i]) + 0.5f;
            if (which >= 0) x[(7 * which + 3) % k] = odd_values[which];
            if (which == 3)
                for (int64_t i = 0; i < k; ++i) x[i] *= 1e-37f;
            const Aligned<uint8_t> got = prepared(kernel, x.data(), 1, k), want = prepared(reference, x.data(), 1, k);
            line.same_bytes(got.data(), want.data(), want.bytes(), k, which);
        }
    }
    return line.finish();
}

// Cuts of the tiles give the bits of the whole.
void check_cuts(Line& line, const LinearKernel& kernel, Format format, const Aligned<uint8_t>& weights, int64_t tiles,
                int64_t k, const Aligned<uint8_t>& act, const std::vector<float>& whole) {
    const int64_t columns = tiles * tile_channels;
    std::vector<float> part(static_cast<size_t>(20 * columns));
    for (const int64_t m : {1, 2, 4, 7, 11, 20})
        for (int64_t first = 0; first < tiles; ++first)
            for (int64_t count = 1; first + count <= tiles; ++count) {
                kernel.product(tiles_of(format, weights, tiles, k, first), count, k, act.data(), m, part.data(),
                               columns);
                for (int64_t r = 0; r < m; ++r)
                    line.expect(
                        std::memcmp(part.data() + r * columns, whole.data() + r * columns + first * tile_channels,
                                    static_cast<size_t>(count * tile_channels) * sizeof(float)) == 0,
                        "m = %lld: the cut at tile %lld shows", static_cast<long long>(m),
                        static_cast<long long>(first));
            }
}

void check_product(Line& line, const KernelTable& table, Format format, int64_t tiles, int64_t k) {
    constexpr int64_t most = 20;
    const int64_t columns = tiles * tile_channels, stride = columns + 3;
    const LinearKernel &kernel = linear(table, format), &reference = linear(generic(), format);
    const Aligned<uint8_t> weights = random_weights(format, tiles, k);
    Floats x(most * k);
    const Aligned<uint8_t> act = prepared(kernel, x.data(), most, k);
    std::vector<float> want(static_cast<size_t>(most * columns)), whole = want;
    reference.product(tiles_of(format, weights, tiles, k), tiles, k, prepared(reference, x.data(), most, k).data(),
                      most, want.data(), columns);
    // vdpbf16ps rounds pairs in its own way.
    const bool rounds_alike = format != Format::bf16 || std::strcmp(table.name, "avx512") != 0;
    const std::vector<float> magnitude = rounds_alike ? want : magnitudes(weights, tiles, k, x, most);
    for (int64_t m = 1; m <= most; ++m) {
        std::vector<float> out(static_cast<size_t>(m * stride), guard);
        kernel.product(tiles_of(format, weights, tiles, k), tiles, k, act.data(), m, out.data(), stride);
        for (int64_t r = 0; r < m; ++r) {
            const float *got = out.data() + r * stride, *row = want.data() + r * columns;
            if (rounds_alike)
                line.same(got, row, columns, k, m);
            else
                for (int64_t c = 0; c < columns; ++c)
                    line.near(got[c], row[c],
                              3e-6 * static_cast<double>(magnitude[static_cast<size_t>(r * columns + c)]), k, m);
            line.expect(std::count(got + columns, got + stride, guard) == 3, "m = %lld: wrote beyond its columns",
                        static_cast<long long>(m));
            std::memcpy(whole.data() + r * columns, got, static_cast<size_t>(columns) * sizeof(float));
        }
    }
    check_cuts(line, kernel, format, weights, tiles, k, act, whole);
}

// The bounds are those of the generic table, to the bit. (That they hold is test_linear_split.py's.)
bool compare_screen(const KernelTable& table) {
    Line line(table, "int8_split screen");
    constexpr int64_t tiles = 5;
    for (const int64_t k : {1, 31, 33, 257, 576})
        for (const int64_t m : {1, 2}) {
            const Aligned<uint8_t> weights = random_weights(Format::int8_split, tiles, k);
            const LinearKernel &kernel = linear(table, Format::int8_split),
                               &reference = linear(generic(), Format::int8_split);
            Floats x(m * k);
            const Aligned<uint8_t> act = prepared(kernel, x.data(), m, k);
            float got[2][2 * tiles], want[2][2 * tiles];
            const Tiles at = tiles_of(Format::int8_split, weights, tiles, k);
            const float* radius = reinterpret_cast<const float*>(weights.data());
            kernel.screen(at, radius, tiles, k, act.data(), m, got[0], got[1], tiles);
            reference.screen(at, radius, tiles, k, act.data(), m, want[0], want[1], tiles);
            line.same(got[0], want[0], m * tiles, k, m);
            line.same(got[1], want[1], m * tiles, k, m);
        }
    return line.finish();
}

// The largest dots of a group are still exact.
void check_extremes(Line& line, const KernelTable& table, Format format) {
    constexpr int64_t k = 96;
    Aligned<uint8_t> weights(tile_bytes(format, k));
    const int64_t step = format_traits[static_cast<int>(format)].block_bytes;
    for (const int fill : {0xff, 0x00})
        for (const float top : {127.0f, -127.0f}) {
            std::memset(weights.data(), fill, static_cast<size_t>(weights.bytes()));
            for (int64_t at = 0; at < weights.bytes(); at += step)
                for (int64_t c = 0; c < tile_channels; ++c) {
                    const uint16_t halves[2] = {0x3c00, 0};  // scale 1, minimum 0
                    std::memcpy(weights.data() + at + 2 * c, halves, 2);
                    if (format == Format::int4) std::memcpy(weights.data() + at + 32 + 2 * c, halves + 1, 2);
                }
            Floats x(k);
            std::fill(x.data(), x.data() + k, top);
            float out[2][tile_channels];
            for (const KernelTable* one : {&table, &generic()}) {
                const LinearKernel& kernel = linear(*one, format);
                const Aligned<uint8_t> act = prepared(kernel, x.data(), 1, k);
                kernel.product(weights.data(), 1, k, act.data(), 1, out[one == &table ? 0 : 1], tile_channels);
            }
            line.same(out[0], out[1], tile_channels, fill);
        }
}

bool compare_linear(const KernelTable& table, Format format) {
    char name[32];
    std::snprintf(name, sizeof name, "%s product", format_name(format));
    Line products(table, name);
    for (const int64_t k : {1, 31, 33, 100, 257, 576})
        for (const int64_t tiles : {1, 2, 5}) check_product(products, table, format, tiles, k);
    if (format == Format::int4 || format == Format::int8) check_extremes(products, table, format);
    bool right = products.finish();

    std::snprintf(name, sizeof name, "%s lookup", format_name(format));
    Line lookups(table, name);
    for (const int64_t k : {1, 33, 257}) {
        const Aligned<uint8_t> weights = random_weights(format, 3, k);
        for (const int64_t index : {0, 7, 15, 16, 33, 47}) {
            Floats got(k), want(k);
            linear(table, format).lookup(tiles_of(format, weights, 3, k), index, k, got.data());
            linear(generic(), format).lookup(tiles_of(format, weights, 3, k), index, k, want.data());
            lookups.same(got.data(), want.data(), k + 16, k, index);
        }
    }
    right = lookups.finish() && right;
    return right;
}

}  // namespace

bool all_linear(const KernelTable& table) {
    bool right = true;
    for (const Format format : {Format::f32, Format::bf16, Format::int8, Format::int4, Format::int8_split}) {
        right = compare_act_prepare(table, format) && right;
        right = compare_linear(table, format) && right;
    }
    return compare_screen(table) && right;
}

}  // namespace compare
