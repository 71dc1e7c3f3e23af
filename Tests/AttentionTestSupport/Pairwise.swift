/// Combinations of parameters in which every pair of values of two parameters occurs.
public enum Pairwise {
  /// Rows of one value index per parameter, few and always the same.
  ///
  /// - Parameter counts: how many values each parameter has.
  /// - Returns: the rows.
  public static func rows(_ counts: [Int]) -> [[Int]] {
    var missing = Set<[Int]>()
    for a in counts.indices {
      for b in counts.indices where b > a {
        for x in 0..<counts[a] { for y in 0..<counts[b] { missing.insert([a, x, b, y]) } }
      }
    }
    func found(_ row: [Int]) -> [[Int]] {
      counts.indices.flatMap { a in
        counts.indices.filter { $0 > a }.map { [a, row[a], $0, row[$0]] }
      }
    }
    var random = TestRandom(seed: 1)
    var rows: [[Int]] = []
    while let pair = missing.min(by: { $0.lexicographicallyPrecedes($1) }) {
      // The best of some random rows that have a pair which is missing.
      let candidates = (0..<50).map { _ in
        var row = counts.map { Int.random(in: 0..<$0, using: &random) }
        (row[pair[0]], row[pair[2]]) = (pair[1], pair[3])
        return row
      }
      let best = candidates.max { count($0) < count($1) } ?? []
      func count(_ row: [Int]) -> Int { found(row).count { missing.contains($0) } }
      missing.subtract(found(best))
      rows.append(best)
    }
    return rows
  }
}
