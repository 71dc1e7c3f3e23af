import IntFlashAttention

/// Runs precisions on inputs and holds the errors against their bounds.
struct AccuracyChecker {
  /// Query rows of synthetic inputs.
  static let mostQueries = 1024

  /// One input.
  struct Input {
    /// Which bounds apply.
    enum Bounds {
      case synthetic(SyntheticInput, length: Int)
      case activations
    }

    let name: String
    let options: AttentionOptions
    /// The exact output.
    let reference: [Float]
    let bounds: Bounds
  }

  /// What the rows of files are averaged by.
  private struct Group: Hashable {
    let precision: Precision
    let backend: String
    let isa: String
  }

  private(set) var report = Report([
    Column("input", "input"),
    Column("precision", "precision"),
    Column("isa", "isa"),
    Column("relativeL1", "rel. L1", .percent(3)),
    Column("cosine", "cosine", .fixed(6)),
    Column("rmse", "RMSE", .fixed(6)),
    Column("meanRelativeError", "MRE", .percent(2)),
    Column("gate", "bound", .percent(3)),
    Column("passed", "passed"),
    Column("backend", nil),
    Column("distanceToSpecification", "to spec", .percent(3)),
    Column("cosineGate", nil),
    Column("specificationGate", "bound", .percent(3)),
  ])
  /// The bounds that are broken, a line each.
  private(set) var broken: [String] = []
  /// How many bounds there were.
  private(set) var boundCount = 0

  private let precisions: [Precision]
  private let backends: [any AttentionBackend]
  private let progress: Progress
  private var errorsOfFiles: [Group: [(file: String, error: Double)]] = [:]

  init(precisions: [Precision], backends: [any AttentionBackend], progress: Progress) {
    self.precisions = precisions
    self.backends = backends
    self.progress = progress
  }

  /// Pairs of query and key of a synthetic input.
  static func pairs(syntheticLength length: Int) -> Double {
    Double(min(length, mostQueries)) * Double(length)
  }

  // MARK: Check

  /// Adds a row per precision and backend.
  mutating func check(_ input: Input, _ operands: borrowing Operands) throws {
    let shape = try operands.shape()
    for precision in precisions {
      progress.advance(0, next: "\(input.name), \(precision.rawValue)")
      let specification = try self.specification(precision, input, operands)
      var isComputed = false
      for backend in backends {
        guard
          let plan = try AttentionPlan(ifComputed: precision, shape, input.options, on: backend)
        else { continue }
        isComputed = true
        try check(input, operands, precision, plan, specification)
      }
      if !isComputed, case .activations = input.bounds {
        // It is its own specification.
        let plan = try AttentionPlan(
          shape,
          precision: precision,
          options: input.options,
          on: ReferenceBackend()
        )
        try check(input, operands, precision, plan, nil)
      }
      switch input.bounds {
      case .synthetic(_, let length): progress.advance(Self.pairs(syntheticLength: length))
      case .activations: progress.advance(1.5e7)
      }
    }
  }

  /// What the literal definition gives on activations; nil where the distance is not measured.
  private func specification(
    _ precision: Precision,
    _ input: Input,
    _ operands: borrowing Operands
  ) throws -> [Float]? {
    guard case .activations = input.bounds, precision != .int4QueryKey else { return nil }
    return try operands.attend(precision.specification, input.options, on: ReferenceBackend())
  }

  private mutating func check(
    _ input: Input,
    _ operands: borrowing Operands,
    _ precision: Precision,
    _ plan: AttentionPlan,
    _ specification: [Float]?
  ) throws {
    var result = try Tensor(.float32, shape: plan.descriptor.shape.outputShape)
    try operands.run(plan, into: result.mutableView)
    let output = result.copyFloats()
    let error = AccuracyReport(output, against: input.reference)
    let distance = specification.map { AccuracyReport(output, against: $0).relativeL1 }

    let gate = precision.gate
    let bound: Double?
    var isActivation = false
    switch input.bounds {
    case .synthetic(.uniform, _): bound = gate.uniform
    case .synthetic(_, let length): bound = gate.normal(keyValueLength: length)
    case .activations: (bound, isActivation) = (gate.worst, true)
    }
    let summary = plan.summary
    let place = "\(input.name), \(precision.rawValue), \(summary.instructionSet)"
    let passed = [
      hold(error.relativeL1, atMost: bound, "\(place): relative L1"),
      hold(error.cosine, atLeast: isActivation ? gate.cosine : nil, "\(place): cosine"),
      hold(distance, atMost: gate.specification, "\(place): distance to the specification"),
    ]
    if isActivation {
      let group = Group(
        precision: precision,
        backend: summary.backend,
        isa: summary.instructionSet
      )
      errorsOfFiles[group, default: []].append((input.name, error.relativeL1))
    }
    report.append([
      .text(input.name),
      .text(precision.rawValue),
      .text(summary.instructionSet),
      .number(error.relativeL1),
      .number(error.cosine),
      .number(error.rootMeanSquare),
      .number(error.meanRelative),
      .optional(bound),
      .flag(!passed.contains(false)),
      .text(summary.backend),
      .optional(distance),
      .optional(isActivation ? gate.cosine : nil),
      .optional(distance == nil ? nil : gate.specification),
    ])
  }

  /// Adds the mean over these files, where there are enough of them for a bound.
  mutating func addMeans(over files: [String]) {
    guard files.count >= 4 else { return }
    let groups = errorsOfFiles.keys.sorted {
      let order = Precision.allCases.map(\.rawValue)
      let places = [$0, $1].map { order.firstIndex(of: $0.precision.rawValue) ?? 0 }
      return (places[0], $0.isa) < (places[1], $1.isa)
    }
    for group in groups {
      let errors = (errorsOfFiles[group] ?? []).filter { files.contains($0.file) }.map(\.error)
      let mean = errors.reduce(0, +) / Double(errors.count)
      let bound = group.precision.gate.mean
      let name = "mean of \(errors.count) files"
      let place = "\(name), \(group.precision.rawValue), \(group.isa)"
      let passed = hold(mean, atMost: bound, "\(place): relative L1")
      report.append([
        .text(name), .text(group.precision.rawValue), .text(group.isa), .number(mean), .none,
        .none, .none, .number(bound), .flag(passed), .text(group.backend), .none, .none, .none,
      ])
    }
  }

  // MARK: Bounds

  /// Whether a value is at most its bound; NaN is not.
  private mutating func hold(_ value: Double?, atMost bound: Double?, _ what: String) -> Bool {
    guard let value, let bound else { return true }
    boundCount += 1
    guard !(value <= bound) else { return true }
    broken.append("\(what) is \(value), above \(bound)")
    return false
  }

  /// Whether a value is at least its bound; NaN is not.
  private mutating func hold(_ value: Double?, atLeast bound: Double?, _ what: String) -> Bool {
    guard let value, let bound else { return true }
    boundCount += 1
    guard !(value >= bound) else { return true }
    broken.append("\(what) is \(value), below \(bound)")
    return false
  }
}
