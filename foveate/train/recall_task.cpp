#include "foveate/train/recall_task.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "foveate/base/random.h"

namespace foveate::train {
namespace {

// `count` different numbers below `limit`, in random order.
std::vector<int64_t> draw(Random& random, int64_t limit, int64_t count) {
  std::vector<int64_t> all(static_cast<size_t>(limit));
  std::iota(all.begin(), all.end(), 0);
  random.shuffle(std::span(all));
  all.resize(size_t(count));
  return all;
}

struct Row {
  int64_t *tokens, *answers, *places;
};

void make_text(const RecallTask& task, Random& random, bool is_near, const Row& row) {
  const int64_t first_key = 1, first_value = first_key + task.keys, first_noise = first_value + task.values;
  const int64_t questions = task.length - 2 * task.pairs;
  row.tokens[0] = 0;
  for (int64_t i = 1; i < questions; ++i) row.tokens[i] = first_noise + int64_t(random.below(uint64_t(task.noise)));
  const std::vector<int64_t> keys = draw(random, task.keys, task.pairs);
  // Places of two tokens each, counted from the first token behind 0, or the last ones before the questions.
  const int64_t room = (questions - 1 - task.gap) / 2;
  std::vector<int64_t> slots = is_near ? draw(random, task.pairs, task.pairs) : draw(random, room, task.pairs);
  std::vector<int64_t> place, value;
  for (int64_t pair = 0; pair < task.pairs; ++pair) {
    const int64_t at = (is_near ? questions - 2 * task.pairs : 1) + 2 * slots[size_t(pair)];
    value.push_back(first_value + int64_t(random.below(uint64_t(task.values))));
    place.push_back(at + 1);
    row.tokens[at] = first_key + keys[size_t(pair)];
    row.tokens[at + 1] = value.back();
  }
  const std::vector<int64_t> order = draw(random, task.pairs, task.pairs);
  for (int64_t i = 0; i < task.pairs; ++i) {
    const auto pair = size_t(order[size_t(i)]);
    row.tokens[questions + 2 * i] = first_key + keys[pair];
    row.tokens[questions + 2 * i + 1] = row.answers[i] = value[pair];
    row.places[i] = place[pair];
  }
}

}  // namespace

void RecallTask::validate() const {
  check_options(*this);
  require(pairs <= keys, "recall: pairs must be <= keys, got {} and {}", pairs, keys);
  const int64_t least = 1 + 4 * pairs + gap;
  require(length >= least, "recall: length must be >= 1 + 4 pairs + gap = {}, got {}", least, length);
}

RecallBatch make_recall(const RecallTask& task, int64_t batch, uint64_t seed, uint64_t stream) {
  task.validate();
  Random random(seed, stream);
  RecallBatch made{at::empty({batch, task.length}, at::kLong),
                   at::arange(task.length - 2 * task.pairs, task.length, 2, at::kLong),
                   at::empty({batch, task.pairs}, at::kLong), at::empty({batch, task.pairs}, at::kLong),
                   at::empty({batch}, at::kLong)};
  const auto row = [](const at::Tensor& t, int64_t b) { return t.mutable_data_ptr<int64_t>() + b * t.stride(0); };
  for (int64_t b = 0; b < batch; ++b) {
    const bool is_near = random.uniform() < task.near;
    *row(made.is_near, b) = is_near;
    make_text(task, random, is_near, {row(made.tokens, b), row(made.answers, b), row(made.places, b)});
  }
  return made;
}

}  // namespace foveate::train
