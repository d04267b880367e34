# SPDX-License-Identifier: Apache-2.0
# The CUDA toolkit, for engine plugins alone: where it is, and what HEADRACE_CUDA makes of that.
#
#   HEADRACE_CUDA=AUTO   built where a toolkit is found, else said that it is left out
#   HEADRACE_CUDA=ON     an error that names what is missing and how to get it
#   HEADRACE_CUDA=OFF    not looked for
#
# Looked for in CUDAToolkit_ROOT (variable, then environment), else in cuda below HEADRACE_DEPS
# (environment, else .headrace/deps), which scripts/cuda/fetch fills; that one brings cuDNN along.
# Sets HEADRACE_WITH_CUDA, and makes the target headrace_cuda, which nothing but a plugin may link.

set(HEADRACE_CUDA "AUTO" CACHE STRING "build the CUDA parts: AUTO, ON or OFF")
set_property(CACHE HEADRACE_CUDA PROPERTY STRINGS AUTO ON OFF)
# Ampere, Hopper and Blackwell of data centres; later ones compile the last one's PTX when it is loaded.
set(HEADRACE_CUDA_ARCHITECTURES "80-real;90-real;100" CACHE STRING
  "sm architectures that kernels are built for, as CMAKE_CUDA_ARCHITECTURES has them")

set(HEADRACE_WITH_CUDA OFF)
if(NOT HEADRACE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "HEADRACE_CUDA=${HEADRACE_CUDA}: must be AUTO, ON or OFF")
endif()
if(HEADRACE_CUDA STREQUAL "OFF")
  return()
endif()

# Kept, because a build tree configures itself anew in whatever environment.
if(DEFINED ENV{HEADRACE_DEPS})
  set(HEADRACE_DEPS $ENV{HEADRACE_DEPS} CACHE PATH "where downloads are, of the last configuration" FORCE)
endif()
if(CUDAToolkit_ROOT)
  set(cuda_root ${CUDAToolkit_ROOT})
elseif(DEFINED ENV{CUDAToolkit_ROOT})
  set(cuda_root $ENV{CUDAToolkit_ROOT})
elseif(HEADRACE_DEPS)
  set(cuda_root ${HEADRACE_DEPS}/cuda)
else()
  set(cuda_root ${CMAKE_SOURCE_DIR}/.headrace/deps/cuda)
endif()

# A toolkit that moved or was deleted must not be remembered.
foreach(name NVCC CUDA_INCLUDE CUBLASLT_INCLUDE CUDNN_INCLUDE CUDART CUBLASLT CUDNN)
  unset(HEADRACE_${name} CACHE)
endforeach()
set(cuda_here NO_DEFAULT_PATH PATHS ${cuda_root})
find_program(HEADRACE_NVCC nvcc ${cuda_here} PATH_SUFFIXES bin)
find_path(HEADRACE_CUDA_INCLUDE cuda_runtime_api.h ${cuda_here} PATH_SUFFIXES include)
find_path(HEADRACE_CUBLASLT_INCLUDE cublasLt.h ${cuda_here} PATH_SUFFIXES include)
find_library(HEADRACE_CUDART cudart_static ${cuda_here} PATH_SUFFIXES lib64 lib)
find_library(HEADRACE_CUBLASLT cublasLt ${cuda_here} PATH_SUFFIXES lib64 lib)
# cuDNN is a package of its own where the toolkit was installed by one.
find_path(HEADRACE_CUDNN_INCLUDE cudnn_graph.h HINTS ${cuda_root} PATH_SUFFIXES include)
find_library(HEADRACE_CUDNN cudnn HINTS ${cuda_root} PATH_SUFFIXES lib64 lib)

set(cuda_missing)
foreach(row "NVCC=nvcc" "CUDA_INCLUDE=cuda_runtime_api.h" "CUDART=libcudart_static.a"
    "CUBLASLT_INCLUDE=cublasLt.h" "CUBLASLT=libcublasLt.so" "CUDNN_INCLUDE=cudnn_graph.h"
    "CUDNN=libcudnn.so")
  string(REPLACE "=" ";" row ${row})
  list(GET row 0 name)
  if(NOT HEADRACE_${name})
    list(GET row 1 file)
    list(APPEND cuda_missing ${file})
  endif()
endforeach()
if(cuda_missing)
  list(JOIN cuda_missing ", " cuda_missing)
  if(HEADRACE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "HEADRACE_CUDA=ON: ${cuda_root} has no ${cuda_missing}. scripts/cuda/fetch gets a "
      "toolkit (985 MB); -DCUDAToolkit_ROOT=DIR names another one, with cuDNN in it or installed")
  endif()
  message(STATUS "CUDA is left out: ${cuda_root} has no ${cuda_missing}; scripts/cuda/fetch gets them")
  return()
endif()

set(CMAKE_CUDA_COMPILER ${HEADRACE_NVCC})
# nvcc knows few versions of clang; what it makes links with code of either.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
endif()
set(CMAKE_CUDA_ARCHITECTURES ${HEADRACE_CUDA_ARCHITECTURES})
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
set(HEADRACE_WITH_CUDA ON)

# Linked by path, so that nothing but this target's users ever sees a CUDA library.
add_library(headrace_cuda INTERFACE)
target_include_directories(headrace_cuda SYSTEM INTERFACE
  ${HEADRACE_CUDA_INCLUDE} ${HEADRACE_CUBLASLT_INCLUDE} ${HEADRACE_CUDNN_INCLUDE})
target_link_libraries(headrace_cuda INTERFACE
  ${HEADRACE_CUBLASLT} ${HEADRACE_CUDNN} ${HEADRACE_CUDART} rt ${CMAKE_DL_LIBS})
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} of ${cuda_root}, for sm ${HEADRACE_CUDA_ARCHITECTURES}")
