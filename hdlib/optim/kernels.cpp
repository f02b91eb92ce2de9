// One step of SGD-HD and of Adam-HD on the CPU in the fewest passes over memory.
//
// alpha_t needs the whole gradient before any parameter may move, so a step is two passes. The first sums
// h_t, |g_t|^2 and |D_{t-1}|^2 and updates the state; the second moves the parameters. The slope g_t . D_t, which some
// rules need, is summed where d_t is at hand: by SGD in the first pass, by Adam in the second. rules.py says what is
// computed, in the same letters; _kernels.py compiles this file when it is first needed. It includes no header
// of torch: tensors come as addresses and lengths.
//
// Tensors are cut into chunks that threads share. Every chunk has its own sums, which are added in order, so
// the result does not depend on the number of threads.

#include <cmath>
#include <cstdint>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int64_t CHUNK = 16384;  // elements; five arrays of it stay in a core's second-level cache
constexpr int64_t LINE = 1024;    // elements whose sum is kept in the tensors' precision, before float64

struct Sums {
    double gd = 0, gg = 0, dd = 0, along = 0;  // d is that of the last step, along is with that of this one
    void operator+=(const Sums& other) { gd += other.gd; gg += other.gg; dd += other.dd; along += other.along; }
};

struct Piece { int64_t tensor, start, length; };

std::vector<Piece> cut(int64_t count, const int64_t* sizes) {
    std::vector<Piece> pieces;
    for (int64_t k = 0; k < count; ++k)
        for (int64_t start = 0; start < sizes[k]; start += CHUNK)
            pieces.push_back({k, start, sizes[k] - start < CHUNK ? sizes[k] - start : CHUNK});
    return pieces;
}

template <class F>
Sums over_pieces(int64_t count, const int64_t* sizes, int threads, F visit) {
    const std::vector<Piece> pieces = cut(count, sizes);
    std::vector<Sums> sums(pieces.size());
    const int64_t n = static_cast<int64_t>(pieces.size());
    #pragma omp parallel for num_threads(threads) schedule(static) if (n > 4 && threads > 1)
    for (int64_t i = 0; i < n; ++i) sums[i] = visit(pieces[i]);
    Sums all;
    for (const Sums& s : sums) all += s;
    return all;
}

// Inner loops are free functions of values: a scalar that is captured by reference stops the vectoriser.

template <class T, bool DECAY>
inline T gradient(const T* g, const T* p, int64_t i, T sign, T l2) {
    return DECAY ? sign * g[i] + l2 * p[i] : sign * g[i];
}

// SGD, d = -D: mode 0 plain, d_t = g_t; 1 heavy ball, d_t = v_t; 2 Nesterov, d_t = g_t + mu v_t
template <class T, bool DECAY, int MODE>
Sums directions(const T* __restrict g, const T* __restrict p, T* __restrict v, T* __restrict d, int64_t n, T sign, T l2,
                T mu, T keep, T share) {
    Sums all;
    for (int64_t start = 0; start < n; start += LINE) {
        const int64_t end = start + LINE < n ? start + LINE : n;
        T gd = 0, gg = 0, dd = 0, along = 0;
        #pragma omp simd reduction(+ : gd, gg, dd, along)
        for (int64_t i = start; i < end; ++i) {
            const T gi = gradient<T, DECAY>(g, p, i, sign, l2), di = MODE == 1 ? v[i] : d[i];
            gd += gi * di;
            gg += gi * gi;
            dd += di * di;
            if (MODE == 0) {
                d[i] = gi;
            } else {
                const T vi = keep * v[i] + share * gi, following = MODE == 2 ? gi + mu * vi : vi;
                v[i] = vi;
                if (MODE == 2) d[i] = following;
                along += gi * following;
            }
        }
        all += {double(gd), double(gg), double(dd), double(MODE == 0 ? gg : along)};
    }
    return all;
}

template <class T>
void descend(T* __restrict p, const T* __restrict d, int64_t n, T alpha) {
    #pragma omp simd
    for (int64_t i = 0; i < n; ++i) p[i] -= alpha * d[i];
}

// Adam: c1 and c2 are 1/(1 - b1^t) and 1/sqrt(1 - b2^t), here of the last step; decay is AdamW's; new1 and new2 are
// 1 - b1 and 1 - b2, which lose digits where they are subtracted in T
template <class T, bool READ_P, bool AMSGRAD>
Sums moments(const T* __restrict g, const T* __restrict p, T* __restrict m, T* __restrict v, T* __restrict x, int64_t n,
             T sign, T l2, T decay, T new1, T b2, T new2, T c1, T c2, T eps) {
    Sums all;
    for (int64_t start = 0; start < n; start += LINE) {
        const int64_t end = start + LINE < n ? start + LINE : n;
        T gd = 0, gg = 0, dd = 0;
        #pragma omp simd reduction(+ : gd, gg, dd)
        for (int64_t i = start; i < end; ++i) {
            const T gi = gradient<T, READ_P>(g, p, i, sign, l2);
            T di = c1 * m[i] / (std::sqrt(AMSGRAD ? x[i] : v[i]) * c2 + eps);
            if (READ_P) di += decay * p[i];
            gd += gi * di;
            gg += gi * gi;
            dd += di * di;
            m[i] += new1 * (gi - m[i]);
            const T vi = b2 * v[i] + new2 * gi * gi;
            v[i] = vi;
            if (AMSGRAD) x[i] = x[i] > vi ? x[i] : vi;
        }
        all += {double(gd), double(gg), double(dd)};
    }
    return all;
}

template <class T>
void adam_descend(T* __restrict p, const T* __restrict m, const T* __restrict v, int64_t n, T keep, T alpha, T c2,
                  T eps) {
    #pragma omp simd
    for (int64_t i = 0; i < n; ++i) p[i] = keep * p[i] - alpha * m[i] / (std::sqrt(v[i]) * c2 + eps);
}

// the same, and the slope of the loss along the step
template <class T>
Sums adam_descend_along(const T* __restrict g, T* __restrict p, const T* __restrict m, const T* __restrict v, int64_t n,
                        T sign, T l2, T decay, T keep, T alpha, T c1, T c2, T eps) {
    Sums all;
    for (int64_t start = 0; start < n; start += LINE) {
        const int64_t end = start + LINE < n ? start + LINE : n;
        T along = 0;
        #pragma omp simd reduction(+ : along)
        for (int64_t i = start; i < end; ++i) {
            const T over = m[i] / (std::sqrt(v[i]) * c2 + eps), pi = p[i];
            along += (sign * g[i] + l2 * pi) * (c1 * over + decay * pi);
            p[i] = keep * pi - alpha * over;
        }
        all.along += double(along);
    }
    return all;
}

template <class T>
T* at(const uint64_t* addresses, const Piece& piece) {
    return reinterpret_cast<T*>(addresses[piece.tensor]) + piece.start;
}

// moved[k]: D_{t-1} of tensor k is not zero. started[k]: it has a velocity; the first one is the gradient.
template <class T, bool DECAY, int MODE>
Sums sgd_observe(int64_t count, const int64_t* sizes, const uint64_t* params, const uint64_t* grads,
                 const uint64_t* vs, const uint64_t* ds, const uint8_t* moved, const uint8_t* started, T sign, T l2,
                 T mu, T share, int threads) {
    return over_pieces(count, sizes, threads, [=](const Piece& piece) {
        const bool old = started[piece.tensor];
        Sums sums = directions<T, DECAY, MODE>(
            at<T>(grads, piece), at<T>(params, piece), MODE == 0 ? nullptr : at<T>(vs, piece),
            MODE == 1 ? nullptr : at<T>(ds, piece), piece.length, sign, l2, mu, old ? mu : 0, old ? share : 1);
        if (!moved[piece.tensor]) sums.gd = sums.dd = 0;
        return sums;
    });
}

template <class T, bool READ_P, bool AMSGRAD>
Sums adam_observe(int64_t count, const int64_t* sizes, const uint64_t* params, const uint64_t* grads,
                  const uint64_t* ms, const uint64_t* vs, const uint64_t* xs, const double* c1, const double* c2,
                  T sign, T l2, T decay, double b1, double b2, T eps, int threads) {
    return over_pieces(count, sizes, threads, [=](const Piece& piece) {
        const int64_t k = piece.tensor;
        const bool moved = c1[k] != 0;  // zero before the first step and after a rest
        Sums sums = moments<T, READ_P, AMSGRAD>(
            at<T>(grads, piece), at<T>(params, piece), at<T>(ms, piece), at<T>(vs, piece),
            AMSGRAD ? at<T>(xs, piece) : nullptr, piece.length, sign, l2, moved ? decay : 0, 1 - b1, b2, 1 - b2,
            moved ? c1[k] : 0, moved ? c2[k] : 0, moved ? eps : 1);
        if (!moved) sums.gd = sums.dd = 0;
        return sums;
    });
}

// grads is null where nobody asks for the slope
template <class T>
double adam_move(int64_t count, const int64_t* sizes, const uint64_t* params, const uint64_t* grads,
                 const uint64_t* ms, const uint64_t* vs, const double* c1, const double* c2, double alpha, T sign, T l2,
                 double decay, T eps, int threads) {
    return over_pieces(count, sizes, threads, [=](const Piece& piece) {
        const int64_t k = piece.tensor;
        T *p = at<T>(params, piece), *m = at<T>(ms, piece), *v = at<T>(vs, piece);
        const T keep = T(1 - alpha * decay), rate = T(alpha * c1[k]);
        if (grads)
            return adam_descend_along<T>(at<T>(grads, piece), p, m, v, piece.length, sign, l2, T(decay), keep, rate,
                                         T(c1[k]), T(c2[k]), eps);
        adam_descend<T>(p, m, v, piece.length, keep, rate, T(c2[k]), eps);
        return Sums();
    }).along;
}

void give(const Sums& sums, double* out) { out[0] = sums.gd; out[1] = sums.gg; out[2] = sums.dd; out[3] = sums.along; }

}  // namespace

#define KERNELS(T, NAME)                                                                                             \
    EXPORT void sgd_observe_##NAME(int64_t count, const int64_t* sizes, const uint64_t* params,                      \
                                   const uint64_t* grads, const uint64_t* vs, const uint64_t* ds,                    \
                                   const uint8_t* moved, const uint8_t* started, int mode, double sign, double l2,   \
                                   double mu, double share, int threads, double* out) {                              \
        const auto run =                                                                                             \
            l2 != 0 ? (mode == 0 ? sgd_observe<T, true, 0> : mode == 1 ? sgd_observe<T, true, 1> : sgd_observe<T, true, 2>)\
                    : (mode == 0 ? sgd_observe<T, false, 0> : mode == 1 ? sgd_observe<T, false, 1> : sgd_observe<T, false, 2>);\
        give(run(count, sizes, params, grads, vs, ds, moved, started, T(sign), T(l2), T(mu), T(share), threads), out);\
    }                                                                                                                \
    EXPORT void sgd_descend_##NAME(int64_t count, const int64_t* sizes, const uint64_t* params,                      \
                                   const uint64_t* directions, double alpha, int threads) {                          \
        over_pieces(count, sizes, threads, [=](const Piece& piece) {                                                 \
            descend<T>(at<T>(params, piece), at<T>(directions, piece), piece.length, T(alpha));                      \
            return Sums();                                                                                           \
        });                                                                                                          \
    }                                                                                                                \
    EXPORT void adam_observe_##NAME(int64_t count, const int64_t* sizes, const uint64_t* params,                     \
                                    const uint64_t* grads, const uint64_t* ms, const uint64_t* vs,                   \
                                    const uint64_t* xs, const double* c1, const double* c2, double sign, double l2,  \
                                    double decay, double b1, double b2, double eps, int threads, double* out) {      \
        const auto run = l2 != 0 || decay != 0 ? (xs ? adam_observe<T, true, true> : adam_observe<T, true, false>)   \
                                               : (xs ? adam_observe<T, false, true> : adam_observe<T, false, false>); \
        give(run(count, sizes, params, grads, ms, vs, xs, c1, c2, T(sign), T(l2), T(decay), b1, b2, T(eps),          \
                 threads),                                                                                           \
             out);                                                                                                   \
    }                                                                                                                \
    EXPORT void adam_descend_##NAME(int64_t count, const int64_t* sizes, const uint64_t* params,                     \
                                    const uint64_t* grads, const uint64_t* ms, const uint64_t* vs, const double* c1, \
                                    const double* c2, double alpha, double sign, double l2, double decay, double eps,\
                                    int threads, double* along) {                                                    \
        *along = adam_move<T>(count, sizes, params, grads, ms, vs, c1, c2, alpha, T(sign), T(l2), decay, T(eps),     \
                              threads);                                                                              \
    }

KERNELS(float, float32)
KERNELS(double, float64)
