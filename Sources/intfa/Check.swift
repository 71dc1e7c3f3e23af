import ArgumentParser
import IntFlashAttention

/// `intfa check`: the error of every precision against its bounds.
struct Check: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Hold the error of every precision against its bounds; exit 1 when one breaks.",
    discussion: """
      Inputs are: normal and uniform(-1/2, 1/2) numbers, one head, D = 64, up to 1024 queries, \
      softmax scale 1/8, no mask; the activations that are part of the program; and FILES with \
      tensors q, k, v, and o if it is there. Errors are against o, else against float64 attention. \
      Every precision runs on every instruction set of \
      this machine, or on that of --isa or INTFA_ISA; what no CPU kernel computes runs on the \
      reference backend, on activations and files only.

      Bounds: relative L1 everywhere; on activations and files also cosine and, 'to spec', the \
      relative L1 distance to the literal definition of the recipe; with at least four files also \
      the mean over them. Bounds of activations hold for language models with a causal mask.

      JSON keys: input precision isa relativeL1 cosine rmse meanRelativeError gate passed backend \
      distanceToSpecification cosineGate specificationGate. What has no bound is null.
      """
  )

  @Argument(
    help: ArgumentHelp("Files of activations (.safetensors).", valueName: "files")
  )
  var files: [String] = []

  @Option(
    help: ArgumentHelp("Built-in inputs to check, or none.", valueName: "name,…"),
    transform: Self.parseInputs
  )
  var inputs = CommaList(["normal", "uniform", "activations"])

  @Option(
    help: ArgumentHelp("Keys of the synthetic inputs.", valueName: "n,…"),
    transform: CommaList<Int>.counts
  )
  var lengths = CommaList([1024, 2048, 4096, 8192, 16384])

  @Option(
    name: [.customLong("precision"), .customLong("precisions")],
    help: ArgumentHelp("The recipes to check; all unless given.", valueName: "name,…"),
    transform: CommaList<Precision>.precisions
  )
  var precisions: CommaList<Precision>?

  @OptionGroup(title: "Formula") var mask: MaskOptions
  @OptionGroup(title: "Formula") var math: MathOptions
  @OptionGroup(title: "Backend") var backend: BackendOptions
  @OptionGroup(title: "Output") var seed: SeedOptions
  @OptionGroup(title: "Output") var output: OutputOptions

  static func parseInputs(_ text: String) throws -> CommaList<String> {
    if text == "none" { return CommaList([], description: text) }
    let known = [
      SyntheticInput.normal.rawValue, SyntheticInput.uniform.rawValue, DemoActivations.name,
    ]
    return try CommaList(text, each: "one of \(known.joined(separator: ", "))") { part in
      known.contains(part) ? part : nil
    }
  }

  func run() throws {
    let precisions = precisions?.values ?? Precision.allCases
    // Files are opened first, so that a name that is wrong does not cost a minute.
    for path in files { _ = try ActivationFile(path: path) }
    let names = Self.shortNames(files)
    let progress = Progress(total: expectedWork(precisions.count), quiet: output.quiet)
    var checker = AccuracyChecker(
      precisions: precisions,
      backends: try backends(),
      progress: progress
    )
    for kind in [SyntheticInput.normal, .uniform] where inputs.values.contains(kind.rawValue) {
      for length in lengths.values { try check(kind, length, with: &checker) }
    }
    if inputs.values.contains(DemoActivations.name) {
      let file = try DemoActivations.file()
      try check(file, name: DemoActivations.name, with: &checker)
    }
    for path in files {
      let file = try ActivationFile(path: path)
      try blaming(path) { try check(file, name: names[path] ?? path, with: &checker) }
    }
    checker.addMeans(over: files.map { names[$0] ?? $0 })
    progress.clear()
    output.print(checker.report)
    guard checker.broken.isEmpty else {
      for line in checker.broken { Console.message("broken: \(line)") }
      Console.message("\(checker.broken.count) of \(checker.boundCount) bounds are broken")
      throw ExitCode(ExitStatus.brokenBound.rawValue)
    }
    output.note("all \(checker.boundCount) bounds hold")
  }

  /// What rows call each file: its name without folders, where that names one file only.
  private static func shortNames(_ paths: [String]) -> [String: String] {
    let groups = Dictionary(grouping: Set(paths)) { path in
      path.split(separator: "/").last.map(String.init) ?? path
    }
    return groups.reduce(into: [:]) { names, group in
      for path in group.value { names[path] = group.value.count == 1 ? group.key : path }
    }
  }

  /// The backends whose kernels are checked.
  private func backends() throws -> [any AttentionBackend] {
    switch backend.backend {
    case .reference, .cuda: return [try backend.make()]
    case .auto, .cpu:
      let processor = backend.processor
      let isChosen = processor.isa != nil || Machine.environment("INTFA_ISA") != nil
      guard !isChosen else { return try processor.cpuBackends() }
      return InstructionSet.supported.map {
        CPUBackend(threadCount: processor.threads, instructionSet: $0)
      }
    }
  }

  /// Work for the progress bar, in pairs of query and key.
  private func expectedWork(_ precisionCount: Int) -> Double {
    let kinds = inputs.values.filter { $0 != DemoActivations.name }.count
    let synthetic = lengths.values.reduce(0.0) { $0 + AccuracyChecker.pairs(syntheticLength: $1) }
    // Activations cost more: the specification runs on them too.
    let activations = inputs.values.count - kinds + 2 * files.count
    return Double(precisionCount) * (Double(kinds) * synthetic + Double(activations) * 1.5e7)
  }

  private func check(
    _ kind: SyntheticInput,
    _ length: Int,
    with checker: inout AccuracyChecker
  ) throws {
    let shape = try AttentionShape(
      queryHeadCount: 1,
      keyValueHeadCount: 1,
      queryLength: min(length, AccuracyChecker.mostQueries),
      keyValueLength: length,
      headDimension: 64
    )
    let operands = try kind.operands(shape, seed: seed.seed)
    let options = StoredOptions(softmaxScale: 0.125).merged(math, mask)
    let reference = try operands.exact(lastRows: shape.queryLength, options)
    try checker.check(
      .init(
        name: "\(kind.rawValue) \(length)",
        options: options,
        reference: reference,
        bounds: .synthetic(kind, length: length)
      ),
      operands
    )
  }

  private func check(
    _ file: borrowing ActivationFile,
    name: String,
    with checker: inout AccuracyChecker
  ) throws {
    let operands = try file.operands()
    let options = try file.storedOptions().merged(math, mask)
    let shape = try operands.shape()
    let stored = try file.storedOutput(shape)
    let reference = try stored ?? operands.exact(lastRows: shape.queryLength, options)
    try checker.check(
      .init(
        name: name,
        options: options,
        reference: reference,
        bounds: .activations
      ),
      operands
    )
  }
}
