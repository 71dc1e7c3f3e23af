import CAttentionKernels
import IntFlashAttention
import Testing

extension InstructionSet {
  /// Its table of C functions, found by name.
  func kernelTable() throws -> intfa_cpu_kernels {
    let tables = unsafe (INTFA_PORTABLE.rawValue...INTFA_NEON_I8MM.rawValue)
      .compactMap { unsafe intfa_cpu_kernels_for(intfa_isa($0)) }
    let table = unsafe tables.first { unsafe String(cString: $0.pointee.name) == rawValue }
    return unsafe try #require(unsafe table).pointee
  }
}
