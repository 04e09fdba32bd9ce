/* The words in which one text is OpenCL C and CUDA. Arithmetic is as written: no compiler may
   contract a multiplication and an addition but where MAD says so. */
#ifdef __OPENCL_VERSION__
#pragma OPENCL FP_CONTRACT OFF
#define KERNEL __kernel void
#define GLOBAL __global
#define SHARED __local
#define CONSTANT __constant
#define SYNC() barrier(CLK_LOCAL_MEM_FENCE)
#define LOCAL_X ((uint)get_local_id(0))
#define LOCAL_Y ((uint)get_local_id(1))
#define GROUP_X ((uint)get_group_id(0))
#define GROUP_Y ((uint)get_group_id(1))
#define GROUPS_X ((uint)get_num_groups(0))
#define ADD_SHARED(place, value) atomic_add(place, value)
#define ADD_GLOBAL(place, value) atomic_add(place, value)
#define MAD(a, b, c) mad(a, b, c)
#define MUL(a, b) ((a) * (b))
#define ADD(a, b) ((a) + (b))
#define MIN(a, b) fmin(a, b)
#define MAX(a, b) fmax(a, b)
#define ABS(a) fabs(a)
#define EXP(a) exp(a)
#define TANH(a) tanh(a)
#define SIN_PI(a) sinpi(a)
#define COS_PI(a) cospi(a)
#define INFINITE INFINITY
#else
typedef unsigned char uchar;
typedef unsigned int uint;
#define KERNEL extern "C" __global__ void
#define GLOBAL
#define SHARED __shared__
#define CONSTANT static __device__ __constant__
#define SYNC() __syncthreads()
#define LOCAL_X threadIdx.x
#define LOCAL_Y threadIdx.y
#define GROUP_X blockIdx.x
#define GROUP_Y blockIdx.y
#define GROUPS_X gridDim.x
#define ADD_SHARED(place, value) atomicAdd(place, value)
#define ADD_GLOBAL(place, value) atomicAdd(place, value)
#define MAD(a, b, c) fmaf(a, b, c)
#define MUL(a, b) __fmul_rn(a, b)
#define ADD(a, b) __fadd_rn(a, b)
#define MIN(a, b) fminf(a, b)
#define MAX(a, b) fmaxf(a, b)
#define ABS(a) fabsf(a)
#define EXP(a) expf(a)
#define TANH(a) tanhf(a)
#define SIN_PI(a) sinpif(a)
#define COS_PI(a) cospif(a)
#define INFINITE __int_as_float(0x7f800000)
#endif
