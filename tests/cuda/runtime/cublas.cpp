// cublas.cpp: the products of matrices that ggml-cuda asks cuBLAS for. Sums are taken in double and rounded once.

#include "api.h"

#include <cublas_v2.h>

#include <cstring>
#include <vector>

struct cublasContext { cudaStream_t stream = nullptr; };

namespace emu {

namespace {

struct Matrix {
    const void * data; // device address
    cudaDataType type;
    int          ld;
    bool         is_transposed;
};

struct Product { // C [m, n] = alpha A [m, k] B [k, n] + beta C, column after column
    int    m, n, k;
    double alpha, beta;
    Matrix a, b, c;
};

size_t size_of(cudaDataType type) { return type == CUDA_R_32F ? 4 : 2; }

double number(const void * p, cudaDataType type, size_t i) {
    switch (type) {
        case CUDA_R_16F:  return h2f(((const uint16_t *) p)[i]);
        case CUDA_R_16BF: return b2f(((const uint16_t *) p)[i]);
        default:          return ((const float *) p)[i];
    }
}

void set_number(void * p, cudaDataType type, size_t i, double x) {
    switch (type) {
        case CUDA_R_16F:  ((uint16_t *) p)[i] = f2h((float) x); break;
        case CUDA_R_16BF: ((uint16_t *) p)[i] = f2b((float) x); break;
        default:          ((float *) p)[i] = (float) x; break;
    }
}

// [rows][k] in double
std::vector<double> rows_of(const Matrix & x, int rows, int k, bool is_left) {
    std::vector<double> out((size_t) rows*k);
    const void * const p = touch(x.data);
    const bool runs_along_k = is_left == x.is_transposed; // neighbours in memory are neighbours in the sum
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < k; j++) {
            out[(size_t) i*k + j] = number(p, x.type, runs_along_k ? (size_t) i*x.ld + j : (size_t) j*x.ld + i);
        }
    }
    return out;
}

size_t bytes_of(const Matrix & x, int rows, int k, bool is_left) {
    const bool runs_along_k = is_left == x.is_transposed;
    const size_t lines = runs_along_k ? rows : k, length = runs_along_k ? k : rows;
    return ((lines - 1)*x.ld + length)*size_of(x.type);
}

cudaError_t multiply(const Product & p) {
    cudaError_t e = check_device_memory(p.a.data, bytes_of(p.a, p.m, p.k, true), "cuBLAS reads");
    if (e == cudaSuccess) { e = check_device_memory(p.b.data, bytes_of(p.b, p.n, p.k, false), "cuBLAS reads"); }
    if (e == cudaSuccess) { e = check_device_memory(p.c.data, ((size_t) (p.n - 1)*p.c.ld + p.m)*size_of(p.c.type), "cuBLAS writes"); }
    if (e != cudaSuccess) {
        set_sticky(cudaErrorIllegalAddress);
        return e;
    }
    const std::vector<double> a = rows_of(p.a, p.m, p.k, true), b = rows_of(p.b, p.n, p.k, false);
    void * const c = touch(p.c.data);
    for (int j = 0; j < p.n; j++) {
        for (int i = 0; i < p.m; i++) {
            double sum = 0;
            for (int x = 0; x < p.k; x++) { sum += a[(size_t) i*p.k + x]*b[(size_t) j*p.k + x]; }
            const size_t at = (size_t) j*p.c.ld + i;
            const double old = p.beta == 0 ? 0 : p.beta*number(c, p.c.type, at);
            set_number(c, p.c.type, at, p.alpha*sum + old);
        }
    }
    return cudaSuccess;
}

bool is_known(cudaDataType type) { return type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF; }

// `count` products; at(i) is the i-th
template <class At> cublasStatus_t enqueue_products(cublasHandle_t handle, const Product & p, int count, At at) {
    if (!is_known(p.a.type) || !is_known(p.b.type) || !is_known(p.c.type)) {
        refuse(cudaErrorNotSupported, "cuBLAS: a type that is not emulated");
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    const cudaError_t e = enqueue(handle->stream, { Kind::KERNEL, 0, [=] {
        cudaError_t bad = cudaSuccess;
        for (int i = 0; i < count && bad == cudaSuccess; i++) { bad = multiply(at(p, i)); }
        return bad;
    } });
    return e == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

double factor(const void * p, cublasComputeType_t type) {
    return type == CUBLAS_COMPUTE_16F ? h2f(*(const uint16_t *) p) : *(const float *) p;
}

const void * moved(const Matrix & x, long long stride, int i) { return (const uint8_t *) x.data + stride*i*(long long) size_of(x.type); }

const void * listed(const void * const * list, int i) { // a list in device memory
    const void * p;
    memcpy(&p, touch(list + i), sizeof(p));
    return p;
}

} // namespace

} // namespace emu

using namespace emu;

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t * h) { *h = new cublasContext; return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasDestroy_v2(cublasHandle_t h) { delete h; return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t stream) { h->stream = stream; return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void *, size_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }
const char *   cublasGetStatusString(cublasStatus_t s) { return s == CUBLAS_STATUS_SUCCESS ? "success" : "an error of the emulated cuBLAS"; }

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
        const void * alpha, const void * a, cudaDataType type_a, int lda, long long stride_a,
        const void * b, cudaDataType type_b, int ldb, long long stride_b,
        const void * beta, void * c, cudaDataType type_c, int ldc, long long stride_c, int count,
        cublasComputeType_t type, cublasGemmAlgo_t) {
    const Product all = { m, n, k, factor(alpha, type), factor(beta, type),
        { a, type_a, lda, op_a != CUBLAS_OP_N }, { b, type_b, ldb, op_b != CUBLAS_OP_N }, { c, type_c, ldc, false } };
    return enqueue_products(h, all, count, [=](Product p, int i) {
        p.a.data = moved(p.a, stride_a, i);
        p.b.data = moved(p.b, stride_b, i);
        p.c.data = moved(p.c, stride_c, i);
        return p;
    });
}
cublasStatus_t cublasGemmBatchedEx(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
        const void * alpha, const void * const a[], cudaDataType type_a, int lda, const void * const b[], cudaDataType type_b, int ldb,
        const void * beta, void * const c[], cudaDataType type_c, int ldc, int count, cublasComputeType_t type, cublasGemmAlgo_t) {
    const Product all = { m, n, k, factor(alpha, type), factor(beta, type),
        { nullptr, type_a, lda, op_a != CUBLAS_OP_N }, { nullptr, type_b, ldb, op_b != CUBLAS_OP_N }, { nullptr, type_c, ldc, false } };
    return enqueue_products(h, all, count, [=](Product p, int i) {
        p.a.data = listed(a, i);
        p.b.data = listed(b, i);
        p.c.data = listed((const void * const *) c, i);
        return p;
    });
}
cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
        const void * alpha, const void * a, cudaDataType type_a, int lda, const void * b, cudaDataType type_b, int ldb,
        const void * beta, void * c, cudaDataType type_c, int ldc, cublasComputeType_t type, cublasGemmAlgo_t algorithm) {
    return cublasGemmStridedBatchedEx(h, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c, type_c, ldc, 0, 1, type, algorithm);
}
cublasStatus_t cublasSgemm_v2(cublasHandle_t h, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
        const float * alpha, const float * a, int lda, const float * b, int ldb, const float * beta, float * c, int ldc) {
    return cublasGemmEx(h, op_a, op_b, m, n, k, alpha, a, CUDA_R_32F, lda, b, CUDA_R_32F, ldb, beta, c, CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
}

} // extern "C"
