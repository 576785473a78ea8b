#include "foveate/train/trainer.h"

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <optional>

#include "foveate/base/timer.h"
#include "foveate/io/safetensors.h"
#include "foveate/models/stored.h"

namespace foveate::train {
namespace {

constexpr std::string_view kFormat = "checkpoint 1";

}  // namespace

Trainer::Trainer(ParameterMap parameters, LossOf loss, TrainOptions options, std::map<std::string, std::string> subject,
                 TensorMap buffers)
    : options_(options),
      loss_(std::move(loss)),
      subject_(std::move(subject)),
      buffers_(std::move(buffers)),
      optimizer_(std::move(parameters), options) {
  check_options(options_);
}

StepReport Trainer::step() {
  const Timer timer;
  const int64_t step = steps_done();
  StepLoss made = loss_(step, uint64_t(options_.seed));
  const double loss = made.loss.item<double>();
  require(std::isfinite(loss), "train: the loss must be finite, got {} at step {}; lower lr", loss, step);
  made.loss.backward();
  const double rate = learning_rate(options_, step);
  const double norm = optimizer_.step(rate);
  return {step + 1, loss, rate, norm, timer.seconds(), made.tokens, std::move(made.notes)};
}

std::map<std::string, std::string> Trainer::metadata() const {
  std::map<std::string, std::string> all = subject_;
  TrainOptions::fields(options_, [&](std::string_view name, const auto& value, Range, std::string_view) {
    all[std::string(name)] = fmt::format("{}", value);
  });
  all["foveate"] = kFormat;
  return all;
}

TensorMap Trainer::state() const {
  TensorMap all = optimizer_.state();
  for (const auto& [name, tensor] : buffers_) all["buffer." + name] = tensor;
  return all;
}

void Trainer::save(const std::string& path) const {
  const TensorMap state = this->state();
  std::vector<io::StoredTensor> stored;
  for (const auto& [name, tensor] : state) stored.push_back(models::store(name, tensor));
  auto texts = metadata();
  texts["step"] = fmt::format("{}", steps_done());
  io::write_safetensors(path, stored, texts);
}

void Trainer::load(const std::string& path) {
  const io::Safetensors file = io::Safetensors::open(path);
  const auto& written = file.metadata();
  const auto text = [&](const std::string& key) {
    const auto found = written.find(key);
    return found == written.end() ? std::nullopt : std::optional(found->second);
  };
  const auto got = [&](const std::string& key) { return text(key) ? io::printable(*text(key)) : "none"; };
  require(text("foveate") == kFormat, "{}: foveate must be '{}', got {}: this is no checkpoint", path, kFormat,
          got("foveate"));
  for (const auto& [key, value] : metadata())
    require(text(key) == value, "{}: {} must be {} as in this run, got {}; resume with the options it was written with",
            path, key, io::printable(value), got(key));
  int64_t steps = -1;
  const bool is_number = detail::parse_value(text("step").value_or(""), steps);
  require(is_number && steps >= 0 && steps <= options_.steps, "{}: step must be 0 .. {}, got {}", path, options_.steps,
          got("step"));
  const TensorMap state = this->state();
  require(file.tensors().size() == state.size(), "{}: must have {} tensors as this run, got {}", path, state.size(),
          file.tensors().size());
  TensorMap restored;
  for (const auto& [name, tensor] : state) {
    const at::Tensor other = restored[name] = models::restore(file.tensor(name));
    require(other.sizes() == tensor.sizes() && other.scalar_type() == tensor.scalar_type(),
            "{}: {} must be {} [{}], got {} [{}]", path, name, c10::toString(tensor.scalar_type()),
            fmt::join(tensor.sizes(), ", "), c10::toString(other.scalar_type()), fmt::join(other.sizes(), ", "));
  }
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : state) tensor.copy_(restored[name]);
  optimizer_.set_steps(steps);
}

StepReport run(Trainer& trainer, const RunOptions& options) {
  const bool keeps = !options.checkpoint.empty();
  require(!options.resumes || keeps, "train: to resume needs the checkpoint's path, got none");
  if (options.resumes) trainer.load(options.checkpoint);
  StepReport report{.step = trainer.steps_done()};
  while (!trainer.is_done()) {
    report = trainer.step();
    try {
      if (options.observe) options.observe(report);
    } catch (...) {
      if (keeps) trainer.save(options.checkpoint);
      throw;
    }
    const bool is_due = options.save_every > 0 && report.step % options.save_every == 0;
    if (keeps && (is_due || trainer.is_done())) trainer.save(options.checkpoint);
  }
  return report;
}

}  // namespace foveate::train
