// Convex losses of a prediction u for a target y: logistic, Huber, Poisson.
//
// Each has value(y, u) >= 0; pull(y, u), minus the derivative in u; bend(y, u), the second derivative
// or something larger that keeps Newton's equations definite; conjugate(y, v), of -v, for v between 0
// and pull; curvature(), a bound of the second derivative.

#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

struct Loss {
  virtual ~Loss() = default;
  virtual double value(double y, double u) const = 0;
  virtual double pull(double y, double u) const = 0;
  virtual double bend(double y, double u) const = 0;
  virtual double conjugate(double y, double v) const = 0;
  virtual double curvature() const = 0;
};

inline double x_log_x(double x) { return x > 0 ? x * std::log(x) : 0; }

// log(1 + exp(-y u)) for y of -1 and 1.
struct Logistic : Loss {
  static double sigmoid(double z) {
    const double e = std::exp(-std::abs(z));
    return (z >= 0 ? 1 : e) / (1 + e);
  }
  double value(double y, double u) const override {
    const double z = y * u;
    return std::log1p(std::exp(-std::abs(z))) + std::max(-z, 0.0);
  }
  double pull(double y, double u) const override { return y * sigmoid(-y * u); }
  double bend(double y, double u) const override {
    return std::max(sigmoid(u) * sigmoid(-u), 1e-10);
  }
  double conjugate(double y, double v) const override {
    const double q = y * v;
    return x_log_x(q) + x_log_x(1 - q);
  }
  double curvature() const override { return 0.25; }
};

// d^2 / 2 for d = y - u up to delta, delta |d| - delta^2 / 2 beyond.
struct Huber : Loss {
  double delta;
  explicit Huber(double delta) : delta(delta) {}
  double value(double y, double u) const override {
    const double d = std::abs(y - u), inside = std::min(d, delta);
    return inside * (d - inside / 2);
  }
  double pull(double y, double u) const override {
    return std::min(std::max(y - u, -delta), delta);
  }
  // Beyond delta a tenth of the curvature of the parabola that touches the loss there.
  double bend(double y, double u) const override {
    const double d = std::abs(y - u);
    return d <= delta ? 1 : 0.1 * delta / d;
  }
  double conjugate(double y, double v) const override { return v * (v / 2 - y); }
  double curvature() const override { return 1; }
};

// exp(u) - y u, less its minimum: half the deviance. Large counts would cancel in this form.
struct Poisson : Loss {
  double value(double y, double u) const override {
    if (!(y > 0)) return std::exp(u);
    const double d = u - std::log(y);
    return y * (std::expm1(d) - d);
  }
  double pull(double y, double u) const override { return y - std::exp(u); }
  double bend(double y, double u) const override { return std::max(std::exp(u), 1e-8); }
  double conjugate(double y, double v) const override {
    if (!(2 * std::abs(v) < y)) return x_log_x(y - v) - (y - v) - (x_log_x(y) - y);
    const double t = -v / y;
    return y * ((1 + t) * std::log1p(t) - t) - v * std::log(y);
  }
  double curvature() const override { return INFINITY; }
};
