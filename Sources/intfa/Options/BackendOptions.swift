import ArgumentParser
import IntFlashAttention
import IntFlashAttentionCUDA

/// Where attention is computed.
struct BackendOptions: ParsableArguments {
  /// The names that `--backend` takes.
  enum Name: String, ExpressibleByArgument, CaseIterable {
    /// The CPU: a GPU is used where it is asked for.
    case auto
    /// The definition, in double precision.
    case reference
    case cpu
    case cuda
  }

  @Option(help: "Where attention is computed; auto is cpu.")
  var backend = Name.auto

  @OptionGroup var processor: ProcessorOptions

  func validate() throws {
    guard backend == .reference || backend == .cuda else { return }
    let name = backend.rawValue
    if let isa = processor.isa {
      throw ValidationError("--isa \(isa) is for the CPU; --backend \(name) has no such choice")
    }
    if let threads = processor.threads {
      throw ValidationError("--threads \(threads) is for the CPU; --backend \(name) uses all")
    }
  }

  /// The backend that was asked for.
  ///
  /// - Throws: `Failure` with status `unavailable`, or `usage` for several instruction sets.
  func make() throws -> any AttentionBackend {
    if backend == .auto || backend == .cpu { return try processor.cpuBackend() }
    return try makeEach()[0]
  }

  /// The backend that was asked for, once per instruction set that was.
  ///
  /// - Throws: `Failure` with status `unavailable`.
  func makeEach() throws -> [any AttentionBackend] {
    switch backend {
    case .auto, .cpu: return try processor.cpuBackends()
    case .reference: return [ReferenceBackend()]
    case .cuda:
      let backend = CUDABackend()
      do throws(AttentionError) {
        _ = try backend.device()
        _ = try NVRTC.shared.get()
      } catch {
        throw Failure(.unavailable, "--backend cuda is not available here: \(error.message)")
      }
      return [backend]
    }
  }
}

/// How the CPU is used.
struct ProcessorOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Instruction set of the kernels; unless given, what INTFA_ISA names, else the fastest here.",
      discussion: "'bench' and 'check' take several, between commas.",
      valueName: "name"
    ),
    transform: CommaList<String>.names
  )
  var isa: CommaList<String>?

  @Option(
    help: ArgumentHelp(
      "Threads to use, at most one per processor; one per physical core unless given.",
      valueName: "n"
    )
  )
  var threads: Int?

  /// Every name that a build of this tool may know.
  static let instructionSetNames = [
    "avx512vnni", "avxvnni", "avx2", "neoni8mm", "neondotprod", "portable",
  ]

  func validate() throws {
    if let threads, threads < 1 {
      throw ValidationError("--threads is \(threads); it must be at least 1")
    }
    for name in isa?.values ?? []
    where InstructionSet(rawValue: name) == nil && !Self.instructionSetNames.contains(name) {
      throw ValidationError(
        "--isa is '\(name)'; it must be one of "
          + Self.instructionSetNames.joined(separator: ", ")
      )
    }
  }

  /// The one CPU backend with these choices.
  ///
  /// - Throws: `Failure` with status `unavailable` for an instruction set that is not here, `usage`
  ///   for several.
  func cpuBackend() throws -> CPUBackend {
    if let isa, isa.values.count > 1 {
      throw Failure(.usage, "--isa is '\(isa)'; this verb takes one instruction set")
    }
    return try cpuBackends()[0]
  }

  /// A CPU backend with these choices per instruction set that was asked for.
  ///
  /// - Throws: `Failure` with status `unavailable` for an instruction set that is not here.
  func cpuBackends() throws -> [CPUBackend] {
    let sets = try isa?.values.map { try Self.instructionSet($0) } ?? [nil]
    return try sets.map { set in
      let backend = CPUBackend(threadCount: threads, instructionSet: set)
      _ = try backend.chosenInstructionSet()
      return backend
    }
  }

  /// The instruction set of this name.
  private static func instructionSet(_ isa: String) throws -> InstructionSet? {
    guard let set = InstructionSet(rawValue: isa), set.isSupported else {
      throw Failure(
        .unavailable,
        "--isa \(isa) is not available here; this build and machine have "
          + InstructionSet.supported.map(\.rawValue).joined(separator: ", ")
      )
    }
    return set
  }
}
