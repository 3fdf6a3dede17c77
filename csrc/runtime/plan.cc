#include "plan.h"

#include <algorithm>
#include <string>

#include "../kernels/formats.h"
#include "fault.h"

namespace subsecond {
namespace {

void need(bool condition, const std::string& message) {
    if (!condition) throw PlanFault(message);
}

void check_count(const char* name, int64_t value, int64_t least, int64_t most) {
    need(value >= least && value <= most, std::string(name) + " is " + std::to_string(value) + ", outside " +
                                              std::to_string(least) + ".." + std::to_string(most));
}

}  // namespace

Plan::Plan(PlanLimits limits_, int64_t max_pages_, int64_t max_steps_)
    : limits(std::move(limits_)), max_pages(max_pages_), max_steps(max_steps_) {
    check_count("max_pages_per_sequence", max_pages, 1, int64_t{1} << 24);
    check_count("max_steps", max_steps, 1, int64_t{1} << 20);
    tokens.resize(static_cast<size_t>(limits.max_tokens));
    sequence_start.resize(static_cast<size_t>(limits.max_sequences) + 1);
    position.resize(static_cast<size_t>(limits.max_sequences));
    row.resize(static_cast<size_t>(limits.max_rows));
    samplers.resize(static_cast<size_t>(limits.max_rows));
    in_use_.reserve(static_cast<size_t>(limits.max_rows));
    finish.resize(static_cast<size_t>(limits.max_rows));
    // Several steps have one row a sequence.
    const int64_t results = std::max(limits.max_rows, limits.max_sequences * max_steps);
    sampled.resize(static_cast<size_t>(results));
    outcomes.resize(static_cast<size_t>(results));
    for (const PlanLimits::Group& group : limits.groups) {
        page_table.emplace_back(static_cast<size_t>(limits.max_sequences * max_pages));
        writer_.emplace_back(static_cast<size_t>(group.pages), -1);
    }
}

void Plan::check(const PlanSizes& sizes) {
    ++calls_;
    check_shape(sizes);
    for (int64_t s = 0; s < sizes.sequences; ++s) check_sequence(s, sizes);
    for (int64_t t = 0; t < sizes.tokens; ++t)
        if (tokens[static_cast<size_t>(t)] < 0 || tokens[static_cast<size_t>(t)] >= limits.token_limit)
            check_count(("tokens[" + std::to_string(t) + "]").c_str(), tokens[static_cast<size_t>(t)], 0,
                        limits.token_limit - 1);
    for (int64_t r = 0; r < sizes.rows; ++r)
        check_count(("row[" + std::to_string(r) + "]").c_str(), row[static_cast<size_t>(r)], 0, sizes.tokens - 1);
    check_samplers(sizes);
    if (sizes.max_steps > 1) check_steps(sizes);
}

void Plan::check_shape(const PlanSizes& sizes) const {
    check_count("n_tokens", sizes.tokens, 1, limits.max_tokens);
    check_count("n_sequences", sizes.sequences, 1, std::min(limits.max_sequences, sizes.tokens));
    check_count("n_rows", sizes.rows, 0, limits.max_rows);
    check_count("max_steps", sizes.max_steps, 1, max_steps);
    need(sequence_start[0] == 0, "sequence_start[0] must be 0");
    for (int64_t s = 0; s < sizes.sequences; ++s)
        need(sequence_start[static_cast<size_t>(s)] < sequence_start[static_cast<size_t>(s) + 1],
             "sequence_start must increase at " + std::to_string(s + 1));
    need(sequence_start[static_cast<size_t>(sizes.sequences)] == sizes.tokens, "sequence_start must end with n_tokens");
}

// Positions, and a valid page for every position that the sequence reads or writes in any step of the call. A page is
// written by one sequence only: pages that several sequences share are for reading.
void Plan::check_sequence(int64_t s, const PlanSizes& sizes) {
    const size_t index = static_cast<size_t>(s);
    const std::string place = "[" + std::to_string(s) + "]";
    const int64_t first = position[index];
    const int64_t count = sequence_start[index + 1] - sequence_start[index] + sizes.max_steps - 1;
    check_count(("position" + place).c_str(), first, 0, limits.position_limit - count);
    const int64_t last_block = (first + count - 1) / kv_block;
    check_count(("last page of sequence" + place).c_str(), last_block, 0, max_pages - 1);
    for (size_t g = 0; g < limits.groups.size(); ++g) {
        const PlanLimits::Group& group = limits.groups[g];
        need(group.window != 0 || last_block < group.pages,
             "sequence" + place + " needs more pages than cache group " + std::to_string(g) + " has");
        const int64_t seen = group.window == 0 ? 0 : std::max<int64_t>(0, first - group.window + 1);
        for (int64_t b = seen / kv_block; b <= last_block; ++b) {
            const int32_t page = table(g, s)[b];
            if (page < 0 || page >= group.pages)
                check_count(("page_table(" + std::to_string(g) + ")" + place + "[" + std::to_string(b) + "]").c_str(),
                            page, 0, group.pages - 1);
            if (b < first / kv_block) continue;
            int64_t& writer = writer_[g][static_cast<size_t>(page)];
            need(writer / limits.max_sequences != calls_ || writer < 0,
                 "page " + std::to_string(page) + " of cache group " + std::to_string(g) +
                     " would be written twice, by sequence" + place + " too");
            writer = calls_ * limits.max_sequences + s;
        }
    }
}

void Plan::check_samplers(const PlanSizes& sizes) {
    in_use_.clear();
    for (int64_t r = 0; r < sizes.rows; ++r) {
        const bool drafted = is_drafted(r) && sizes.max_steps == 1 && continues(r, sizes);
        if (samplers[static_cast<size_t>(r)] != nullptr && !drafted)
            in_use_.push_back(samplers[static_cast<size_t>(r)]);
    }
    need(in_use_.empty() || limits.vocab > 0, "this model has no logits to sample from");
    std::sort(in_use_.begin(), in_use_.end());
    need(std::adjacent_find(in_use_.begin(), in_use_.end()) == in_use_.end(),
         "one sampler is set in two rows that are no draft");
}

bool Plan::continues(int64_t r, const PlanSizes& sizes) const {
    const size_t index = static_cast<size_t>(r);
    const auto begin = sequence_start.begin();
    return row[index] == row[index - 1] + 1 && !std::binary_search(begin, begin + sizes.sequences, row[index]);
}

void Plan::check_steps(const PlanSizes& sizes) const {
    need(sizes.rows == sizes.sequences, "max_steps > 1 needs one row a sequence");
    need(limits.vocab <= limits.token_limit, "max_steps > 1 needs an embedding row for every token of the vocabulary");
    for (int64_t s = 0; s < sizes.sequences; ++s) {
        const size_t index = static_cast<size_t>(s);
        need(
            row[index] == sequence_start[index + 1] - 1,
            "max_steps > 1 needs row[" + std::to_string(s) + "] to be the last token of sequence " + std::to_string(s));
        need(samplers[index] != nullptr, "max_steps > 1 needs a sampler in row " + std::to_string(s));
    }
}

}  // namespace subsecond
