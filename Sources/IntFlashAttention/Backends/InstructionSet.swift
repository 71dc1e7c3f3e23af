internal import CAttentionKernels

/// A set of processor instructions that kernels are written for.
public enum InstructionSet: String, Sendable, Hashable, CaseIterable {
  /// Plain C, on every processor.
  case portable
  /// AVX2 with fused multiply-add and half-precision conversions: x86-64 since 2013.
  case avx2
  /// AVX2 with 8-bit dot products (AVX-VNNI): x86-64 without AVX-512 since 2021, Zen 5.
  case avxVNNI = "avxvnni"
  /// AVX-512 with 8-bit dot products (VNNI): x86-64 servers since 2019, Zen 4 and later.
  case avx512VNNI = "avx512vnni"
  /// NEON with 8-bit dot products (`sdot`): Cortex-A76, Neoverse N1, Apple M1 and later.
  case neonDotProd = "neondotprod"
  /// NEON with 8-bit matrix products (`smmla`): Neoverse V1 and N2, Apple M2 and later.
  case neonI8MM = "neoni8mm"

  /// Those that this build has kernels for and this machine can run, the fastest last.
  public static var supported: [InstructionSet] { allCases.filter(\.isSupported) }

  /// The fastest of ``supported``.
  public static var best: InstructionSet { supported.last ?? .portable }

  /// Whether this build has kernels for it and this machine can run them.
  public var isSupported: Bool { unsafe intfa_cpu_kernels_for(kernelSet) != nil }

  /// What the kernels' table calls it.
  var kernelSet: intfa_isa {
    switch self {
    case .portable: INTFA_PORTABLE
    case .avx2: INTFA_AVX2
    case .avxVNNI: INTFA_AVX_VNNI
    case .avx512VNNI: INTFA_AVX512_VNNI
    case .neonDotProd: INTFA_NEON_DOTPROD
    case .neonI8MM: INTFA_NEON_I8MM
    }
  }

  /// Its kernels; only asked of an instruction set that is supported.
  var kernels: intfa_cpu_kernels {
    guard let table = unsafe intfa_cpu_kernels_for(kernelSet) else {
      preconditionFailure("the backend checked that the instruction set is supported")
    }
    return unsafe table.pointee
  }
}
