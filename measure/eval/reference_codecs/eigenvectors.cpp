#include "eval/reference_codecs/eigenvectors.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace vidkv::cli {

namespace {

constexpr int MOST_SWEEPS = 30;
constexpr double SMALL = 1e-11; // of the diagonal's size, left beside it

// A plane rotation by the angle that makes matrix[p][q] zero.
struct Turn {
    double cosine, sine;

    Turn(double pp, double qq, double pq) {
        const double theta = (qq - pp) / (2 * pq);
        const double tangent = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
        cosine = 1 / std::sqrt(tangent * tangent + 1);
        sine = tangent * cosine;
    }
    void operator()(double & p, double & q) const {
        const double was = p;
        p = cosine * was - sine * q;
        q = sine * was + cosine * q;
    }
};

class Jacobi {
  public:
    Jacobi(std::vector<double> matrix, int n) : matrix_(std::move(matrix)), vectors_(matrix_.size()), n_(n) {
        for (int i = 0; i < n; ++i) vectors_[at(i, i)] = 1;
    }

    Eigenvectors solve() {
        for (int sweep = 0; sweep < MOST_SWEEPS && !diagonal(); ++sweep)
            for (int p = 0; p < n_; ++p)
                for (int q = p + 1; q < n_; ++q) turn(p, q);
        Eigenvectors result;
        for (int i = 0; i < n_; ++i) result.values.push_back(matrix_[at(i, i)]);
        result.vectors.assign(vectors_.begin(), vectors_.end());
        return result;
    }

  private:
    size_t at(int row, int column) const { return static_cast<size_t>(row * n_ + column); }

    bool diagonal() const {
        double on = 0, beside = 0;
        for (int i = 0; i < n_; ++i)
            for (int j = 0; j < n_; ++j) (i == j ? on : beside) += matrix_[at(i, j)] * matrix_[at(i, j)];
        return beside <= SMALL * SMALL * on;
    }

    void turn(int p, int q) {
        if (matrix_[at(p, q)] == 0) return;
        const Turn turn(matrix_[at(p, p)], matrix_[at(q, q)], matrix_[at(p, q)]);
        for (int i = 0; i < n_; ++i) turn(matrix_[at(p, i)], matrix_[at(q, i)]);
        for (int i = 0; i < n_; ++i) turn(matrix_[at(i, p)], matrix_[at(i, q)]);
        for (int i = 0; i < n_; ++i) turn(vectors_[at(p, i)], vectors_[at(q, i)]);
    }

    std::vector<double> matrix_, vectors_;
    int n_;
};

} // namespace

float Eigenvectors::along(int i, const float * x) const {
    const size_t n = values.size();
    return std::inner_product(x, x + n, vectors.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(i) * n), 0.0F);
}

void Eigenvectors::sum(const std::vector<float> & parts, float * x) const {
    const size_t n = values.size();
    std::fill_n(x, n, 0.0F);
    for (size_t i = 0; i < n; ++i)
        for (size_t channel = 0; channel < n; ++channel) x[channel] += parts[i] * vectors[i * n + channel];
}

Eigenvectors eigenvectors(std::vector<double> matrix, int n) { return Jacobi(std::move(matrix), n).solve(); }

} // namespace vidkv::cli
