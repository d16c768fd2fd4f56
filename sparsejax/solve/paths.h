// Paths of strengths, each solution from the one before: what the calls through ctypes share.

#pragma once
#include "coordinate.h"

enum Layout { COLUMNS, ROWS, SPARSE };

struct Answer {
  double gap;
  Index outer, rounds, support, result;
};

template <class Model> Answer answer(const Model& model, Index result) {
  const Index support = model.features(model.nonzero()).size();
  return {model.gap, model.outer, model.rounds, support, result};
}

// The bounds of blocks; one that is not 0 is not rounded to 0.
inline std::vector<double> bounds(const double* weights, Index count, double strength) {
  constexpr double least = std::numeric_limits<double>::min();
  std::vector<double> found(count);
  for (Index b = 0; b < count; ++b)
    found[b] = std::isinf(weights[b]) ? weights[b]
               : weights[b] == 0      ? 0
                                      : std::max(weights[b] * strength, least);
  return found;
}
