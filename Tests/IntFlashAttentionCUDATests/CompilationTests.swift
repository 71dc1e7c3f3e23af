import IntFlashAttention
import IntFlashAttentionCUDA
import Testing

/// NVRTC, unless it is the simulator's.
private let realCompiler: NVRTC? = {
  guard let found = try? NVRTC.shared.get(), found.version.major >= 12 else { return nil }
  return found
}()

/// Every kernel with the real compiler, which needs no GPU.
@Suite(.enabled(if: realCompiler != nil, "there is no NVRTC here"))
struct CompilationTests {
  struct Unit: Sendable, CustomTestStringConvertible {
    let architecture: String
    let source: KernelSource

    var testDescription: String {
      let body = source.text.split(separator: "\n").first { $0.contains("(intfa_attend,") } ?? ""
      return "\(architecture): \(body)"
    }
  }

  static let units: [Unit] = ["sm_80", "sm_86", "sm_89", "sm_90a"].flatMap { architecture in
    let sources = (try? KernelSource.all(major: architecture == "sm_90a" ? 9 : 8)) ?? []
    return sources.sorted { $0.text < $1.text }.map { Unit(architecture: architecture, source: $0) }
  }

  @Test func everyMethodHasSources() {
    #expect(Self.units.count > 60)
  }

  /// Registers in memory cost a load each time, and serialised `wgmma` most of the speed; the
  /// assembler says both in its notes only (C75xx).
  @Test(arguments: units)
  func compilesWithoutSpillsAndSerialisation(_ unit: Unit) throws {
    let compiler = try #require(realCompiler)
    let output = try compiler.compile(
      unit.source.text,
      files: KernelSource.files,
      architecture: unit.architecture,
      options: ["--ptxas-options=-v"]
    )
    let spills = output.log.matches(of: #/(\d+) bytes spill stores, (\d+) bytes spill loads/#)
    #expect(spills.count == unit.source.entries.count, "\(output.log)")
    for spill in spills {
      #expect(spill.output.1 == "0" && spill.output.2 == "0", "\(output.log)")
    }
    #expect(!output.log.contains(#/C75\d\d|warning/#), "\(output.log)")
  }
}
