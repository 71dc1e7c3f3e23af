import IntFlashAttention

/// The error table of the paper.
enum PublishedErrors {
  static let lengths = [1024, 2048, 4096, 8192, 16384]
  /// The paper's three recipes, and our own.
  static let precisions = [Precision.float8, .int8QueryKeyPaper, .int8Paper, .int8]

  /// MRE in percent, a row per length: FP8, half INT8, full INT8.
  private static let normal = [
    [7.46, 0.890, 4.05], [7.50, 0.802, 4.18], [7.66, 0.843, 4.21], [7.51, 0.932, 4.38],
    [7.57, 0.775, 4.52],
  ]
  private static let uniform = [
    [8.94, 0.317, 1.69], [9.15, 0.300, 1.62], [8.89, 0.280, 1.65], [9.02, 0.299, 1.85],
    [8.97, 0.296, 1.82],
  ]

  /// The published MRE, or nil where there is none.
  static func meanRelative(_ kind: SyntheticInput, _ length: Int, _ precision: Precision) -> Double?
  {
    guard kind != .outliers, let row = lengths.firstIndex(of: length),
      let column = precisions.firstIndex(of: precision), column < 3
    else { return nil }
    return (kind == .normal ? normal : uniform)[row][column] / 100
  }

  /// What a recipe is called above its columns.
  static func shortName(_ precision: Precision) -> String {
    switch precision {
    case .float8: "FP8"
    case .int8QueryKeyPaper: "half"
    case .int8Paper: "full"
    default: "our \(precision.rawValue)"
    }
  }

  /// What a distribution is called above its table.
  static func title(_ kind: SyntheticInput) -> String {
    let data = kind == .normal ? "Normal data, N(0, 1)" : "Uniform data, U(-1/2, 1/2)"
    return "\(data): FP8 (float8), half INT8 (int8QueryKeyPaper), full INT8 (int8Paper), our int8"
  }
}

/// The speed figures of the paper: its full INT8 form against FlashAttention in FP16.
enum PublishedSpeed {
  /// By number of tokens; whether 0.31 is time saved or speed gained is not certain.
  private static let improvements = [1024: 0.31, 2048: 0.52, 4096: 0.66, 8192: 0.72, 16384: 0.73]

  /// The published improvement, or nil where there is none.
  static func improvement(_ length: Int, _ precision: Precision) -> Double? {
    precision == .int8Paper ? improvements[length] : nil
  }
}
