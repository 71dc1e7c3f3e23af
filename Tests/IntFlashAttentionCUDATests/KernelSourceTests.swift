import IntFlashAttention
import IntFlashAttentionCUDA
import Testing

@Suite struct KernelSourceTests {
  private func source(_ method: CUDAMethod, dimension: Int) throws -> KernelSource {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: 100,
      keyValueLength: 100,
      headDimension: dimension
    )
    let sizes = CUDATileSizes(shape: shape, method: method, major: 8, multiprocessorCount: 108)
    return KernelSource(method, sizes)
  }

  @Test func theSourceOnlyInstantiates() throws {
    let source = try source(.int8, dimension: 128)
    let lines = source.text.split(separator: "\n")
    #expect(lines.count <= 12)
    #expect(
      lines.allSatisfy { line in
        ["#include", "KERNEL", "static_assert"].contains { line.hasPrefix($0) }
      }
    )
    #expect(source.text.contains("attention_int8_sm80<128, 8, 64>(p)"))
  }

  @Test func plansThatDifferOnlyInLengthShareTheirKernels() throws {
    #expect(try source(.int8, dimension: 65) == source(.int8, dimension: 96))
    #expect(try source(.int8, dimension: 64) != source(.int8, dimension: 96))
  }

  @Test func everyIncludeIsEmbedded() {
    let names = Set(KernelSource.files.map(\.name))
    for (name, text) in KernelSource.files {
      for include in text.matches(of: #/#include "([a-z0-9_]+\.cuh?|[a-z_]+\.h)"/#)
      where include.output.1 != "device.h" {
        #expect(names.contains(String(include.output.1)), "\(name) includes \(include.output.1)")
      }
    }
  }

  /// Exact code where the compiler knows the device, older code of its generation, or text for the
  /// driver; never the form of sm_90 that no other device runs.
  @Test(arguments: [
    (8, 0, "sm_80"), (8, 6, "sm_86"), (8, 7, "sm_86"), (8, 9, "sm_89"), (9, 0, "sm_90a"),
    (10, 0, "compute_90"), (12, 0, "compute_90"),
  ])
  func devicesNewerThanTheCompiler(major: Int, minor: Int, expected: String) {
    let exact = "sm_\(major)\(minor)" + (major == 9 ? "a" : "")
    func architecture(_ known: [Int]) -> String? {
      NVRTC.architecture(major: major, minor: minor, exact: exact, known: known)
    }
    #expect(architecture([50, 60, 70, 75, 80, 86, 89, 90]) == expected)
    #expect(architecture([75, 10 * major + minor, 130]) == exact)
    #expect(architecture([130]) == nil)
  }
}
