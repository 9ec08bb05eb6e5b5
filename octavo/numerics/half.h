// f16 and bf16: conversion with round-half-to-even; NaN stays NaN (quiet, sign and upper
// payload bits kept: what F16C does), overflow becomes Inf. Integer arithmetic only: no dependence on the CPU.
#pragma once

#include <cstdint>
#include <span>

namespace octavo {

std::uint16_t FloatToHalf(float x);
float HalfToFloat(std::uint16_t h);
std::uint16_t FloatToBf16(float x);
float Bf16ToFloat(std::uint16_t b);

// Vectorized; bit-equal to the scalar functions. FloatTo* return how many finite inputs became Inf.
std::uint64_t FloatToHalf(std::span<const float> x, std::uint16_t* out);
void HalfToFloat(std::span<const std::uint16_t> x, float* out);
std::uint64_t FloatToBf16(std::span<const float> x, std::uint16_t* out);
void Bf16ToFloat(std::span<const std::uint16_t> x, float* out);

}  // namespace octavo
